"""The child process in which kfp.local runs: ``python -m ...orchestrate SETTINGS``.

It prints to a file its parent opened. It outlives a polite signal: the parent stops the steps one
by one, and the exit handler must still run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

from manyeyes.config.recipe import Recipe


def main(settings_path: str) -> int:
    """Build and run the pipeline that the settings describe; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # a handler, not SIG_IGN: steps inherit that
    signal.signal(signal.SIGINT, lambda *_: None)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    settings = json.loads(Path(settings_path).read_text(encoding="utf-8"))
    recipe = Recipe.model_validate_json(settings["recipe"])
    variants = [Recipe.model_validate_json(text) for text in settings["variants"]]

    from kfp import local

    from manyeyes.kubeflow.pipelines import ablation
    from manyeyes.kubeflow.pipelines.training import Threads, build

    threads = Threads.share(settings["cores"], len(recipe.prealign.experts))
    pipeline = ablation.build(variants, threads) if variants else build(recipe, threads=threads)
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=settings["artifacts"],
        raise_on_error=True,
    )
    warnings.filterwarnings("ignore", message=".*no effect in the current local runner.*")
    try:
        pipeline()
    except RuntimeError as error:  # kfp's word for a failed step; the step told why in the journal
        print(error)
        return 1
    return 0


def _die_with_parent() -> None:
    """Kill this process group when standard input closes: the parent is gone without a word."""
    os.read(0, 1)  # not sys.stdin: its lock would be held when the interpreter ends
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
