"""How a training stage is started: here, by torchrun over this pod's GPUs, or as a TrainJob.

One environment variable decides (``settings.LAUNCH``); without it the stage trains in the process
that asks. The other two ways make the result somewhere else and leave it in the store; the asking
step then finds it there under its fingerprint, like any other result. Nothing is read from logs.

In reading order: settings, reference (what a training process is told), torchrun; for TrainJobs
objects, api, cluster, watching, manifest, state, logs, failure, attempt (one job), trainjob (the
whole).
"""

from __future__ import annotations

import hashlib
import os
import sys

from manyeyes.errors import ManyeyesError
from manyeyes.pipeline.fingerprint import Paths, is_known
from manyeyes.pipeline.launch.reference import StageReference
from manyeyes.pipeline.launch.settings import (
    LAUNCH,
    InProcess,
    Mount,
    SecretReference,
    Torchrun,
    TrainJob,
    launch_settings,
    read_launch,
)
from manyeyes.runtime.home import run_name

__all__ = [
    "LAUNCH",
    "InProcess",
    "Mount",
    "SecretReference",
    "Torchrun",
    "TrainJob",
    "have_made",
    "launch_settings",
]


def have_made(
    stage: str,
    recipe_slice: str,
    *,
    inputs: Paths,
    out: str,
    fingerprint: str,
    expert: str | None = None,
) -> None:
    """Have a stage's result made elsewhere, when the environment says so and there is none yet.

    Args:
        stage: name in the step table.
        recipe_slice: canonical JSON of what the stage sees of the recipe.
        inputs: role to artifact directory, or directories.
        out: where the result shall lie in the end.
        fingerprint: the readable fingerprint.
        expert: the expert that ``prealign`` trains.

    Raises:
        UserError: the settings, the cluster or the training's input are wrong.
        ManyeyesError: the training failed, or left no result in the store.
        Interrupted: it stopped, and the same command continues it.
    """
    settings = read_launch()
    if isinstance(settings, InProcess):
        return
    from manyeyes.pipeline.launch.data import as_sequence, fingerprints_of, has_result

    call = StageReference(
        run=run_name(),
        stage=stage,
        expert=expert,
        recipe_slice=recipe_slice,
        inputs={
            role: tuple(str(path) for path in as_sequence(given)) for role, given in inputs.items()
        },
        inputs_by="path",
        out=out,
        fingerprint=fingerprint,
        key=hashlib.sha256(fingerprint.encode()).hexdigest(),
    )
    # Where this pod does not know what the training reads, only the training itself can look.
    if is_known(fingerprint) and has_result(call.key):
        return
    if isinstance(settings, Torchrun):
        from manyeyes.pipeline.launch.torchrun import train_under_torchrun

        train_under_torchrun(call, settings.processes)
    else:
        by_store = {"inputs": fingerprints_of(inputs), "inputs_by": "fingerprint", "out": None}
        _launch(settings, call.model_copy(update=by_store))
    if not has_result(call.key):
        raise ManyeyesError(
            f"Stage {stage} was trained, but the store has no result under {call.key[:12]}: the "
            "training processes and this step must use the same store."
        )


def _launch(settings: TrainJob, call: StageReference) -> None:
    from manyeyes.pipeline.launch.api import Api
    from manyeyes.pipeline.launch.redact import Voice
    from manyeyes.pipeline.launch.trainjob import TrainJobLauncher
    from manyeyes.runtime.clock import SystemClock

    api = Api(settings.namespace, SystemClock())
    TrainJobLauncher(settings, call, api, Voice(_write), os.environ.get("HOSTNAME")).run()


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
