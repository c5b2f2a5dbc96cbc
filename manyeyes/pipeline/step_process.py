"""One process of a stage that several processes train.

torchrun starts it (``python -m manyeyes.pipeline.step_process``), on every node as many as there
are GPUs. What to train stands in the environment by reference; inputs that lie in the store are
fetched once for a node. From there on it is a step like any other, which keeps its result in the
store.
"""

from __future__ import annotations

import os
from pathlib import Path

from manyeyes.pipeline.launch.data import fetch_input
from manyeyes.pipeline.launch.reference import StageReference, read_stage_reference
from manyeyes.pipeline.worker import protect, run_step
from manyeyes.runtime.home import RUN, home


def main() -> None:
    """Train the stage that the environment names, as one of its processes.

    Raises:
        SystemExit: it failed; the code is the error's exit code.
    """
    call = read_stage_reference()
    os.environ[RUN] = call.run
    paths = {role: tuple(_path(call, one) for one in given) for role, given in call.inputs.items()}
    run_step(
        call.stage,
        protect(call.recipe_slice),
        inputs={
            role: [str(path) for path in given] if role == "experts" else str(given[0])
            for role, given in paths.items()
        },
        out=call.out or str(home() / "results" / call.key[:32]),
        fingerprint=call.fingerprint,
        expert=call.expert,
        expert_digests=_digests(paths.get("experts", ())),
    )


def _path(call: StageReference, given: str) -> Path:
    return Path(given) if call.inputs_by == "path" else fetch_input(given)


def _digests(experts: tuple[Path, ...]) -> list[str]:
    from manyeyes.artifact.manifest import read_manifest

    return [read_manifest(path).digest for path in experts]


if __name__ == "__main__":
    main()
