"""Cheap stand-ins for the bodies of the stages, for tests of the orchestration.

Every step of the pipeline is a process, so a test cannot patch it from outside. Python imports this
module by itself where its folder is on PYTHONPATH, and only a test puts it there. Everything around
the bodies is real: kfp.local, the components, the worker, the runner, the store, the manifests.

``TOY_ACTIONS`` is a JSON object from a stage's label to what its body does besides writing a file:
``fail:CODE``, ``crash``, ``wait``, ``threads``.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
from patch_kit import AfterImport

sys.path.pop()


def _act(label, out):
    action = json.loads(os.environ.get("TOY_ACTIONS", "{}")).get(label, "")
    kind, _, argument = action.partition(":")
    if kind == "fail":
        from manyeyes import errors

        raise getattr(errors, argument)(f"The toy was told to fail in {label}.")
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "wait":
        (out / "begun").touch()
        parent = os.getppid()
        while os.getppid() == parent:  # until it is stopped; an orphan leaves
            time.sleep(0.02)


def toy_call(stage, recipe_slice, context):
    """Write one file that depends on the slice and on the content of the inputs."""
    expert = json.loads(recipe_slice).get("expert")
    label = f"{stage}:{expert}" if expert else stage
    inputs, out = context.inputs, context.out
    texts = [
        f"{role}={(path / 'content.txt').read_text()}" for role, path in sorted(inputs.items())
    ]
    context.progress.step(1, 1)
    from manyeyes.runtime.progress import labelled

    _act(labelled(label), out)
    (out / "measurements").mkdir(exist_ok=True)
    (out / "measurements" / "threads.txt").write_text(os.environ.get("OMP_NUM_THREADS", ""))
    (out / "content.txt").write_text(f"{label}({recipe_slice};{';'.join(texts)})")
    return {"toy": True}


def _toy_finalize(state):
    from manyeyes.runtime.home import run_directory

    (run_directory() / "final.txt").write_text(state)


PATCHES = {
    "manyeyes.pipeline.stages": {"ready": partial(partial, toy_call), "why_again": lambda *_: ""},
    "manyeyes.pipeline.finalize": {"finalize": _toy_finalize},
    # The sources may be edited while the tests run; the toys do not depend on them.
    "manyeyes.pipeline.code_lock": {
        "code_digest": lambda stage, _: f"code-of-{stage}",
        "code_of": lambda stage, _: {stage: "1"},
    },
}


def _replacing(functions):
    """Return what puts functions in the place of those of a module."""
    return lambda module: vars(module).update(functions)


sys.meta_path.insert(0, AfterImport({name: _replacing(one) for name, one in PATCHES.items()}))
