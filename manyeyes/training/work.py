"""The work of one step: all of it, and the part of one process.

Every process knows the whole step from the plan, so that nobody has to ask how many positions are
learned in it, who computes what, or which samples a bad loss belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.training.metering import StepCounts

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from manyeyes.data.loading.batches import Prepared, Share
    from manyeyes.data.loading.packing import Plan


@dataclass(frozen=True)
class Work:
    """One step. A *place* is the number of a micro-batch in it."""

    batches: tuple[tuple[int, ...], ...]
    """Per place the indices of its samples."""
    turns: tuple[tuple[int, ...], ...]
    """Per process its places, in the order in which it computes them."""
    rank: int
    idle: tuple[bool, ...]
    """Per turn of this process: whether it sends a blank picture along, having no other."""
    counts: StepCounts
    """Of the whole step."""

    @classmethod
    def of(
        cls,
        plan: Plan,
        prepared: Prepared,
        step: int,
        share: Share,
        *,
        vision_trains: bool,
        unusable: Collection[int] = (),
    ) -> Work:
        """Read a step off the plan.

        Args:
            plan: of the whole stage.
            prepared: its samples.
            step: from 0.
            share: of this process.
            vision_trains: whether a picture reaches a weight that trains.
            unusable: indices of samples that are there with nothing to learn.
        """
        batches = plan.step(step)
        order = plan.places(step, type(share)(0, 1, share.pictures_last))
        shown = [plan.has_pictures(batches[place]) for place in order]
        size = share.size
        together = [shown[i : i + size] for i in range(0, len(shown), size)]
        ends = (0, len(together) - 1) if share.pictures_last and vision_trains else ()
        return cls(
            batches=batches,
            turns=tuple(order[rank::size] for rank in range(size)),
            rank=share.rank,
            idle=tuple(
                not pictures[share.rank] and (any(pictures) or turn in ends)
                for turn, pictures in enumerate(together)
            ),
            counts=StepCounts.of(prepared, batches, unusable),
        )

    @property
    def places(self) -> tuple[int, ...]:
        """The places this process computes."""
        return self.turns[self.rank]

    def by_place(self, by_rank: Sequence[Sequence[float]]) -> list[float]:
        """Order values that each process gave for its turns by place."""
        found = {
            place: value
            for places, values in zip(self.turns, by_rank, strict=True)
            for place, value in zip(places, values, strict=True)
        }
        return [found[place] for place in range(len(self.batches))]
