"""What a finished stage has to say about its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.training.metering import read_losses

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

    from manyeyes.data.loading.batches import Prepared
    from manyeyes.model.processor import Processor
    from manyeyes.training.checkpoint import Totals
    from manyeyes.training.peak import Peak


@dataclass(frozen=True)
class TrainResult:
    """What came of a training."""

    steps: int
    resumed_step: int
    """The step it continued from; 0 for a run in one go."""
    loss: float
    """Mean of the last tenth of the steps."""
    processor: Processor
    """Makes the canvases that the model was trained on."""
    num_parameters: int
    """Numbers that trained."""
    num_available: int
    """Samples to draw from."""
    num_truncated: int
    quarantined: tuple[str, ...]
    """Ids of samples whose pictures could not be used while training."""
    unlearnable: tuple[str, ...]
    """Ids of samples left out because nothing of them could be learned."""
    totals: Totals
    peak: Peak
    """Of one device, in the stage's type."""
    num_processes: int
    """That trained, each on a device of its own; ``totals`` are of all of them."""

    @property
    def utilisation(self) -> float:
        """Share of the measured peak over the whole stage (0 to 1)."""
        reached = self.totals.flops / max(1e-9, self.totals.seconds)
        return self.peak.share_of(reached / self.num_processes)

    def details(self) -> dict[str, JsonValue]:
        """Return the facts for the manifest; times and rates by step are in ``measurements``."""
        utilisation = self.utilisation  # first: a stage that was faster raises the peak
        return {
            "steps": self.steps,
            "loss": round(self.loss, 6),
            "trained_parameters": self.num_parameters,
            "samples_available": self.num_available,
            "samples_truncated": self.num_truncated,
            "samples_quarantined": len(self.quarantined),
            "samples_unlearnable": len(self.unlearnable),
            "samples_seen": self.totals.samples,
            "tokens_seen": self.totals.tokens,
            "flops": self.totals.flops,
            "seconds": round(self.totals.seconds, 3),
            "measured_peak_flops": round(self.peak.rate),
            "utilisation": round(utilisation, 4),
        }


def mean_of_tail(out: Path, steps: int) -> float:
    """Return the mean loss of the last tenth of a stage's steps."""
    losses = read_losses(out)
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / max(1, len(tail))


def left_out(prepared: Prepared) -> list[str]:
    """Say what of the samples is not trained on, in sentences for a person."""
    said = []
    if prepared.unlearnable:
        said.append(
            f"{len(prepared.unlearnable)} samples left out, nothing of them fits to be learned "
            f"(first: {prepared.unlearnable[0]})"
        )
    if prepared.num_truncated:
        said.append(f"{prepared.num_truncated} samples are cut to the longest length")
    return said
