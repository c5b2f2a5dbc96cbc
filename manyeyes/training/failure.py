"""What is kept of a step whose loss or gradient was not finite, so that someone can look at it.

``measurements/failed-step.json`` names the samples; ``measurements/failed-step/`` holds the tensors
of the micro-batches and the state before the step, as ``checkpoint`` writes it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from manyeyes.artifact.files import FAILURE_FILE, FAILURE_FOLDER
from manyeyes.artifact.manifest import atomic_write_json
from manyeyes.errors import ManyeyesError
from manyeyes.training.checkpoint import save_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from manyeyes.data.loading.batches import Batch
    from manyeyes.training.checkpoint import State


@dataclass(frozen=True)
class Failure:
    """A step that must not be taken."""

    what: str
    """``loss`` or ``gradient``."""
    value: float
    batches: Mapping[int, Batch]
    """The micro-batches it happened in, by their place in the step."""


def keep_failure(out: Path, failure: Failure, state: State, identity: str) -> ManyeyesError:
    """Write down a failed step and return the error that says so.

    Args:
        out: the stage's directory.
        failure: what happened.
        state: before the step.
        identity: of the run.
    """
    clear_failure(out)
    step = state.step + 1
    ids = [name for batch in failure.batches.values() for name in batch.sample_ids]
    path = out / FAILURE_FILE
    kept = "all in"
    try:
        atomic_write_json(
            path, {"step": step, failure.what: str(failure.value), "samples": list(ids)}
        )
        _keep_tensors(out / FAILURE_FOLDER, failure.batches)
        save_state(out / FAILURE_FOLDER, state, identity)
    except (OSError, ManyeyesError):
        kept = "the disk is too full to keep the batch and the state;"
    shown = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return ManyeyesError(
        f"The {failure.what} became {failure.value} at step {step} on the samples {shown} "
        f"({kept} {path}); lower the learning rate, or look at these samples."
    )


def clear_failure(out: Path) -> None:
    """Remove what was kept of a failed step."""
    (out / FAILURE_FILE).unlink(missing_ok=True)
    shutil.rmtree(out / FAILURE_FOLDER, ignore_errors=True)


def _keep_tensors(folder: Path, batches: Mapping[int, Batch]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place, batch in batches.items():
        tensors = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": batch.labels,
        }
        if batch.pixels is not None:
            tensors["pixels"] = batch.pixels
        save_file(tensors, folder / f"batch-{place}.safetensors")
