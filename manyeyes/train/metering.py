"""What a step cost, as one line of ``measurements/metrics.jsonl`` each.

The file is a curve, so a step stands in it once: a run that resumes first drops the lines behind
the state it continues from (they belong to work that was lost) and a line torn by the kill.
Speeds count real positions and samples, never padding.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch
from pydantic import BaseModel, ConfigDict

from manyeyes.artifact import atomic_write_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from manyeyes.data.batches import Prepared

METRICS_FILE = "measurements/metrics.jsonl"


class Row(BaseModel):
    """One step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Steps done, from 1."""
    loss: float
    """Mean over the step's learned positions."""
    alignment_loss: float | None = None
    """1 - mean cosine to the teacher over the step's pictures, not weighted; None without one."""
    learning_rate: float
    """The highest of all groups."""
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Real positions of the step, pictures spliced in."""
    supervised: int
    """Learned positions of the step."""
    tokens_per_second: float
    samples_per_second: float
    data_wait: float
    """Seconds the model waited for the batch."""
    seconds: float
    """The step with its wait, without saving."""
    elapsed: float
    """Sum of ``seconds`` since the first step, over all the times the stage was started."""
    flops: float
    """Operations the step needed; see ``manyeyes.train.flops``."""
    mfu: float | None
    """Share of the device's peak (0 to 1); None where no peak is known."""
    peak_memory: int
    """Bytes: of the device, or resident in memory on a CPU."""
    cpu_percent: float
    """Of the process; 100 is one core."""


@dataclass(frozen=True)
class StepCounts:
    """How much a step worked on."""

    samples: int
    tokens: int
    supervised: int
    images: int
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, prepared: Prepared, micro_batches: Sequence[Sequence[int]]) -> StepCounts:
        """Count the micro-batches of a step, given by the indices of their samples.

        From the plan and not from the tensors, so that every process knows the whole step's.
        """
        encoded = [prepared.encoded[index] for indices in micro_batches for index in indices]
        return cls(
            samples=len(encoded),
            tokens=sum(item.length for item in encoded),
            supervised=sum(item.num_supervised for item in encoded),
            images=sum(item.num_images for item in encoded),
            lengths=tuple(item.length for item in encoded),
        )


class MetricsFile:
    """Appends rows; every line is on its way to disk before the next step begins."""

    def __init__(self, out: Path, resumed_step: int) -> None:
        """Open the curve, cut back to the step that training continues from."""
        path = out / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, "".join(_kept_lines(path, resumed_step)))
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def __enter__(self) -> MetricsFile:
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def add(self, row: Row) -> None:
        """Write one row."""
        self._file.write(row.model_dump_json() + "\n")


def _kept_lines(path: Path, resumed_step: int) -> list[str]:
    """Return the whole lines of steps up to ``resumed_step``, each step once."""
    if not path.is_file():
        return []
    kept: dict[int, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            continue
        if isinstance(step, int) and step <= resumed_step:
            kept[step] = line + "\n"
    return [kept[step] for step in sorted(kept)]


def read_losses(out: Path) -> list[float]:
    """Return the loss of every step so far."""
    path = out / METRICS_FILE
    return [Row.model_validate_json(line).loss for line in path.read_text("utf-8").splitlines()]


class Clock:
    """Times steps and reads the process's use of the machine."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._process = psutil.Process()
        self._process.cpu_percent()
        self._began = time.perf_counter()

    def restart(self) -> None:
        """Begin a step: what came before (saving, loading) is not counted in it."""
        self._began = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the step began."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - self._began

    def cpu_percent(self) -> float:
        """Return the process's use of cores since the last call; 100 is one core."""
        return float(self._process.cpu_percent())

    def peak_memory(self) -> int:
        """Return the highest use of memory so far, in bytes."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        # getrusage counts kilobytes on Linux, bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def device_name(self) -> str:
        """Return the accelerator's name, or ``cpu``."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
