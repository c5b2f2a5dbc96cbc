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

from manyeyes.artifact.files import CURVES_FILE
from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.training.cost import cost_of, trained_parts
from manyeyes.training.flops import step_flops, utilisation
from manyeyes.training.peak import peak_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path
    from types import TracebackType

    from manyeyes.config.recipe import TrainSection
    from manyeyes.data.loading.batches import Prepared
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.training.checkpoint import Totals


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
    """Operations the step needed; see ``manyeyes.training.flops``."""
    mfu: float | None
    """Share of the vendor's peak in bfloat16 (0 to 1); None where none is known."""
    mfu_measured: float
    """Share (0 to 1) of the rate that a large matrix product reached here in the stage's type."""
    data_wait_share: float
    """``data_wait`` over ``seconds``."""
    pictures_read: int
    """Pictures whose features came from disk; their encoders' work is not in ``flops``."""
    quarantined: int = 0
    """Samples whose pictures could not be used; the loss is the mean over the others."""
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
    quarantined: int = 0
    """Samples that are there with nothing to learn; not among ``samples``."""

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        micro_batches: Sequence[Sequence[int]],
        unusable: Collection[int] = (),
    ) -> StepCounts:
        """Count the micro-batches of a step, given by the indices of their samples.

        From the plan and not from the tensors, so that every process knows the whole step's. Of
        samples that are ``unusable`` nothing is learned; the work for them is done all the same.
        """
        indices = [index for indices in micro_batches for index in indices]
        encoded = prepared.encoded
        lengths = encoded.lengths[indices]
        used = [index for index in indices if index not in unusable]
        return cls(
            samples=len(used),
            quarantined=len(indices) - len(used),
            tokens=int(lengths.sum()),
            supervised=int(encoded.num_supervised[used].sum()),
            images=int(encoded.num_images[indices].sum()),
            lengths=tuple(lengths.tolist()),
        )


@dataclass(frozen=True)
class Outcome:
    """What one optimizer step came to; the fields are those of its row."""

    step: int
    loss: float
    alignment_loss: float | None
    learning_rate: float
    grad_norm: float
    data_wait: float
    seconds: float
    pictures_read: int = 0


class Meter:
    """Knows what a model's work is and turns outcomes into rows."""

    def __init__(
        self, model: VisionLanguageModel, section: TrainSection, canvas_size: int, world_size: int
    ) -> None:
        """Count the model's work; what trains must be marked already."""
        self.cost = cost_of(model, canvas_size)
        self.trained = trained_parts(model)
        self.world_size = world_size
        self.dtype = torch.bfloat16 if section.precision == "bfloat16" else torch.float32

    def row(self, outcome: Outcome, counts: StepCounts, totals: Totals, clock: Clock) -> Row:
        """Return the row of a step.

        Args:
            outcome: of the step.
            counts: how much it worked on, in all processes.
            totals: with this step.
            clock: of the device.
        """
        flops, seconds = self.flops(outcome, counts), outcome.seconds
        mine = flops / self.world_size
        used = utilisation(mine, seconds, clock.device_name())
        measured = peak_of(clock.device, self.dtype).share_of(mine / seconds)
        return Row(
            step=outcome.step,
            loss=outcome.loss,
            alignment_loss=outcome.alignment_loss,
            learning_rate=outcome.learning_rate,
            grad_norm=outcome.grad_norm,
            tokens=counts.tokens,
            supervised=counts.supervised,
            tokens_per_second=round(counts.tokens / seconds, 2),
            samples_per_second=round(counts.samples / seconds, 3),
            data_wait=round(outcome.data_wait, 5),
            seconds=round(seconds, 5),
            elapsed=round(totals.seconds, 4),
            flops=flops,
            mfu=None if used is None else round(used, 5),
            mfu_measured=round(measured, 5),
            data_wait_share=round(min(1.0, outcome.data_wait / seconds), 5),
            pictures_read=outcome.pictures_read,
            quarantined=counts.quarantined,
            peak_memory=clock.peak_memory(),
            cpu_percent=clock.cpu_percent(),
        )

    def flops(self, outcome: Outcome, counts: StepCounts) -> float:
        """Return the operations a step needed; encoders whose features were read did nothing."""
        needed = step_flops(
            self.cost,
            self.trained,
            counts.lengths,
            num_images=counts.images,
            num_supervised=counts.supervised,
        )
        return needed - outcome.pictures_read * sum(self.cost.encoder_flops.values())


class MetricsFile:
    """Appends rows; every line is on its way to disk before the next step begins."""

    def __init__(self, out: Path, resumed_step: int) -> None:
        """Open the curve, cut back to the step that training continues from."""
        path = out / CURVES_FILE
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
    path = out / CURVES_FILE
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
