"""The losses of a step: words, and for EVE the alignment with a teacher.

Both are means over the whole step, however it is cut: each micro-batch's mean counts by its share
of the step's learned positions, or of its pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from manyeyes.data.loading.batches import Batch
    from manyeyes.training.distributed import World
    from manyeyes.training.metering import StepCounts
    from manyeyes.training.work import Work


def shares_of(batch: Batch, counts: StepCounts) -> Tensor:
    """Return a micro-batch's shares (2,) of its step: of learned positions and of pictures."""
    pictures = batch.num_images / counts.images if counts.images else 0.0
    # A step of which no sample can be used has nothing to learn.
    return torch.tensor([batch.num_supervised / max(1, counts.supervised), pictures])


@dataclass(frozen=True)
class StepLosses:
    """What each place of a step adds to the step's losses."""

    text: list[float]
    alignment: list[float]
    """Not weighted; all 0 without an alignment."""

    @classmethod
    def gather(
        cls, mine: list[Tensor], num_read: int, work: Work, world: World
    ) -> tuple[StepLosses, int]:
        """Join what all processes found at their turns, each a tensor (2,). Collective.

        Args:
            mine: this process's losses.
            num_read: pictures whose features this process read from disk.
            work: of the step.
            world: the processes.

        Returns:
            (the step's losses, pictures that all processes read from disk)
        """
        told = world.gather([*torch.stack(mine).flatten().tolist(), num_read])
        everyone = [losses for *losses, _ in told]
        joined = cls(
            text=work.by_place([values[0::2] for values in everyone]),
            alignment=work.by_place([values[1::2] for values in everyone]),
        )
        return joined, int(sum(row[-1] for row in told))

    @property
    def total_text(self) -> float:
        """The step's mean over its learned positions."""
        return float(torch.tensor(self.text).sum())

    @property
    def total_alignment(self) -> float:
        """The step's mean over its pictures."""
        return float(torch.tensor(self.alignment).sum())

    @property
    def worst(self) -> float:
        """A loss that is not finite, if there is one; else any."""
        return self.total_alignment if math.isfinite(self.total_text) else self.total_text

    def bad_places(self) -> list[int]:
        """Return the places whose losses are not finite."""
        pairs = enumerate(zip(self.text, self.alignment, strict=True))
        return [place for place, pair in pairs if not all(map(math.isfinite, pair))]
