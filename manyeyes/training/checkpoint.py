"""The resumable state of a stage: written whole or not at all, and checked before it is believed.

Design decisions:

- A state is a folder ``state/step-N`` with the trained weights, the optimizer's moments (both
  safetensors) and ``state.json``, which holds their sha256. It is written as ``step-N.tmp``,
  synced, and renamed; a folder of the final name is whole, and the checksums catch what is not.
- Frozen weights are not in it: they are the stage's input. ``identity`` ties a state to that input,
  to the recipe's section and to the seed; a state of another identity is not continued.
- No random state is saved: batches and dropout are functions of the seed and the step.
- The two newest are kept. A damaged one is skipped with a note, and the one before it continues.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from manyeyes.artifact.manifest import STATES
from manyeyes.errors import ManyeyesError
from manyeyes.runtime.disk import AGAIN, full_disk, no_room, write_through

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from manyeyes.runtime.progress import Progress
    from manyeyes.training.metering import StepCounts

FOLDER = STATES
KEPT = 2
_WEIGHTS, _OPTIMIZER, _RECORD = "weights.safetensors", "optimizer.safetensors", "state.json"


class Totals(BaseModel):
    """What has been counted since the first step, over all the times the stage was started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    seconds: float = 0.0
    flops: float = 0.0

    def plus(self, counts: StepCounts, seconds: float, flops: float) -> Totals:
        """Return the totals with one more step."""
        return Totals(
            samples=self.samples + counts.samples,
            tokens=self.tokens + counts.tokens,
            supervised=self.supervised + counts.supervised,
            seconds=self.seconds + seconds,
            flops=self.flops + flops,
        )


class Record(BaseModel):
    """The part of a state that is not tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    step: int
    """Steps done."""
    totals: Totals
    sha256: dict[str, str]


@dataclass(frozen=True)
class State:
    """A point from which training continues."""

    step: int
    totals: Totals
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def save_state(out: Path, state: State, identity: str) -> Path:
    """Write a state and remove those it makes superfluous.

    Raises:
        UserError: the disk is full.
        ManyeyesError: the folder cannot be written.
    """
    folder = out / FOLDER
    final = folder / f"step-{state.step}"
    temporary = folder / f"step-{state.step}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in ((_WEIGHTS, state.weights), (_OPTIMIZER, state.optimizer)):
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary / name)
        sums = {name: _sha256(temporary / name) for name in (_WEIGHTS, _OPTIMIZER)}
        record = Record(identity=identity, step=state.step, totals=state.totals, sha256=sums)
        (temporary / _RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for name in (_WEIGHTS, _OPTIMIZER, _RECORD):
            write_through(temporary / name)
        write_through(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        write_through(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        number = full_disk(error)
        if number is not None:
            raise no_room(number, folder, AGAIN) from error
        raise ManyeyesError(
            f"{folder}: the state of step {state.step} cannot be written ({error}); "
            "make the folder writable and run the same command again."
        ) from error
    for old in _states(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_state(out: Path, identity: str, progress: Progress) -> State | None:
    """Return the newest whole state of this identity or None; note and remove others before it.

    What is skipped is removed: it would count among the newest and push out what is written next.
    What a killed process had half written is removed, too: it may be large, and nobody resumes it.
    """
    for unfinished in (out / FOLDER).glob("step-*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for path in _states(out / FOLDER):
        try:
            state = _load(path, identity)
        except (OSError, ValueError, SafetensorError) as error:
            progress.note(f"{path.name} is damaged ({_reason(error)}); trying the one before it")
        else:
            if state is not None:
                return state
            progress.note(f"{path.name} belongs to other settings or inputs; it is not continued")
        shutil.rmtree(path, ignore_errors=True)
    return None


def clear_state(out: Path) -> None:
    """Remove all states of a run whose result is kept elsewhere."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def _states(folder: Path) -> list[Path]:
    """Return the folders of states under their final names, newest first."""
    found = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.removeprefix("step-").isdigit() and path.name.startswith("step-")
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _load(path: Path, identity: str) -> State | None:
    """Read one state.

    Raises:
        ValueError: its record or a checksum is wrong.
        OSError, SafetensorError: a file is missing or damaged.
    """
    record = Record.model_validate_json((path / _RECORD).read_text(encoding="utf-8"))
    if record.identity != identity:
        return None
    for name, expected in record.sha256.items():
        if _sha256(path / name) != expected:
            raise ValueError(f"{name} does not match its sha256")
    return State(
        step=record.step,
        totals=record.totals,
        weights=load_file(path / _WEIGHTS),
        optimizer=load_file(path / _OPTIMIZER),
    )


def _reason(error: Exception) -> str:
    match error:
        case ValidationError():
            return f"{_RECORD} is not a record"
        case FileNotFoundError():
            return f"{Path(str(error.filename)).name} is missing"
        case _:
            return str(error)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
