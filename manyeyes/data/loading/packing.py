"""Packs: a step's samples laid end to end in rows of at most so many positions.

Design decisions:

- Packing changes how a step's samples are laid out, never which they are: the samples of a step are
  those of the plan without packs, so a packed run has the losses of an unpacked one and either can
  be compared with the other. Packs are therefore a pure function of (seed, step), too.
- Planned from lengths and numbers of pictures alone, so nothing is decoded to plan.
- A step's packs are as few as the budget allows, in a multiple of the number of processes, and then
  *equal* rather than full: a row is never padded, so an empty end costs nothing, but processes wait
  for the longest row. Equal in two ways, positions and pictures, because the towers' work is as
  much as the language model's. Pictures are dealt first (longest sample first, always to the pack
  with the fewest pictures, then positions); text fills up the positions; then the heaviest pack
  exchanges samples with others for as long as that lowers it. *Most* pictures of a pack are what
  processes wait for, and that number stays; a long sample may well be beside fewer of them.
- Text and pictures share packs: text has no vision cost, and each pack has its share of pictures,
  so that processes meet the same modules at the same time.
- One sort, one heap, few exchanges, each one expression over all samples of the step: some tens of
  microseconds a sample, in the thread that makes batches.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from manyeyes.data.loading.batches import BatchPlan
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from manyeyes.config.recipe import Batch
    from manyeyes.data.loading.batches import Prepared, Share


CLOSE = 0.005
"""Share of the packs' mean by which the heaviest may exceed it: no more is done about that."""
ROUNDS = 10
"""Most exchanges per pack; two or three is usual."""


class Plan(Protocol):
    """Which samples form the micro-batches of each step, and which process computes which."""

    @property
    def packed(self) -> bool:
        """Whether a micro-batch is one row of samples end to end, or a padded row for each."""

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Return the sample indices of each micro-batch of a step; steps count from 0."""

    def places(self, step: int, share: Share) -> tuple[int, ...]:
        """Return which micro-batches of a step a process computes, in its order."""

    def has_pictures(self, indices: Sequence[int]) -> bool:
        """Tell whether a micro-batch shows any picture."""


def pack(
    lengths: Sequence[int], images: Sequence[int], budget: int, multiple: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Lay samples out in packs of nearly equal work.

    Args:
        lengths: positions of each sample, visual tokens included.
        images: pictures of each sample.
        budget: most positions of a pack.
        multiple: the number of packs is a multiple of this; no more than there are samples.

    Returns:
        Per pack the indices of its samples; packs in order of (pictures, positions), so that
        processes that take neighbours do nearly the same.

    Raises:
        UserError: a sample is longer than the budget.
    """
    if not lengths:
        return ()
    _check_longest(max(lengths), budget)
    order = sorted(range(len(lengths)), key=lambda i: (-images[i], -lengths[i], i))
    num_packs = -(-sum(lengths) // budget)
    num_packs += -num_packs % multiple
    while True:
        # At one sample a pack everything fits, so this ends.
        packs = _deal(order, lengths, images, budget, num_packs)
        if packs is not None:
            return packs
        num_packs += multiple


def _deal(
    order: Sequence[int],
    lengths: Sequence[int],
    images: Sequence[int],
    budget: int,
    num_packs: int,
) -> tuple[tuple[int, ...], ...] | None:
    """Deal samples to packs; None if one does not fit."""
    members: list[list[int]] = [[] for _ in range(num_packs)]
    by_images = [(0, 0, number) for number in range(num_packs)]
    num_shown = next((place for place, i in enumerate(order) if not images[i]), len(order))
    for i in order[:num_shown]:
        shown, filled, number = by_images[0]
        if filled + lengths[i] > budget:
            # Rare, and then the two ways of being equal are at odds: the budget decides.
            shown, filled, number = fewest = min(by_images, key=lambda load: load[1])
            if filled + lengths[i] > budget:
                return None
            by_images.remove(fewest)
            heapq.heapify(by_images)
            heapq.heappush(by_images, (shown + images[i], filled + lengths[i], number))
        else:
            load = (shown + images[i], filled + lengths[i], number)
            heapq.heapreplace(by_images, load)
        members[number].append(i)
    by_length = [(filled, number) for _, filled, number in by_images]
    heapq.heapify(by_length)
    for i in order[num_shown:]:
        filled, number = by_length[0]
        if filled + lengths[i] > budget:
            return None
        heapq.heapreplace(by_length, (filled + lengths[i], number))
        members[number].append(i)
    packs = _Packs(members, lengths, images)
    packs.even_out()
    return packs.in_order()


class _Packs:
    """Packs that can exchange samples. Arrays, because every exchange looks at every sample."""

    def __init__(
        self, members: Sequence[Sequence[int]], lengths: Sequence[int], images: Sequence[int]
    ) -> None:
        self.num = len(members)
        # Behind the samples stand the nothings, one in every pack: of no length and no pictures.
        self.lengths = np.array([*lengths, *[0] * self.num])
        self.images = np.array([*images, *[0] * self.num])
        self.home = np.empty(len(self.lengths), dtype=np.int64)
        self.nothings = slice(len(lengths), None)
        self.home[self.nothings] = np.arange(self.num)
        for number, samples in enumerate(members):
            self.home[samples] = number
        self.filled = np.bincount(self.home, self.lengths, self.num).astype(np.int64)
        self.shown = np.bincount(self.home, self.images, self.num).astype(np.int64)
        self.most, self.least = self.shown.max(), min(1, self.shown.min())

    def even_out(self) -> None:
        """Lower the heaviest pack as long as it is heavier than the mean and can be lowered."""
        enough = (1.0 + CLOSE) * self.filled.mean()
        # Each round lowers the heaviest pack, so this ends by itself; the bound is on the time.
        for _ in range(ROUNDS * self.num):
            heavy = int(self.filled.argmax())
            if self.filled[heavy] <= enough or not self._exchange(heavy):
                return

    def _exchange(self, heavy: int) -> bool:
        """Exchange the sample of a pack that helps most, for another or for nothing; or tell no.

        No pack comes to show more pictures than the fullest did, which is waited for anyway. Where
        every pack shows one, it stays so: all processes go through the towers.
        """
        mine = np.flatnonzero(self.home == heavy)
        moved = self.lengths[mine, None] - self.lengths
        turned = self.images[mine, None] - self.images
        after = np.maximum(self.filled[heavy] - moved, self.filled[self.home] + moved)
        here, there = self.shown[heavy] - turned, self.shown[self.home] + turned
        forbidden = (np.maximum(here, there) > self.most) | (np.minimum(here, there) < self.least)
        after[forbidden] = self.filled[heavy]
        place, j = divmod(int(after.argmin()), len(self.lengths))
        if after[place, j] >= self.filled[heavy]:
            return False
        i, other = mine[place], self.home[j]
        for number, sign in ((heavy, -1), (other, 1)):
            self.filled[number] += sign * moved[place, j]
            self.shown[number] += sign * turned[place, j]
        self.home[i], self.home[j] = other, heavy
        self.home[self.nothings] = np.arange(self.num)
        return True

    def in_order(self) -> tuple[tuple[int, ...], ...]:
        """Return the packs in order of (pictures, positions)."""
        members: list[list[int]] = [[] for _ in range(self.num)]
        for index, number in enumerate(self.home[: self.nothings.start].tolist()):
            members[number].append(index)
        loads = zip(self.shown.tolist(), self.filled.tolist(), strict=True)
        order = sorted((*load, number) for number, load in enumerate(loads))
        return tuple(tuple(members[number]) for *_, number in order)


@dataclass
class PackPlan:
    """The packs of each step: another layout of the micro-batches of a :class:`BatchPlan`."""

    batches: BatchPlan
    lengths: NDArray[np.int64]
    """Positions of each sample."""
    images: NDArray[np.int64]
    """Pictures of each sample."""
    budget: int
    """Most positions of a pack."""
    num_processes: int = 1

    def __post_init__(self) -> None:
        """Prepare the memo: a step is asked for by the loader and by the loop."""
        self.lengths, self.images = np.asarray(self.lengths), np.asarray(self.images)
        self._packs = lru_cache(maxsize=8)(self._pack)

    @classmethod
    def of(
        cls, batches: BatchPlan, prepared: Prepared, *, budget: int, num_processes: int
    ) -> PackPlan:
        """Make the plan for prepared samples.

        Args:
            batches: which samples each step has.
            prepared: the samples.
            budget: most positions of a pack.
            num_processes: that share the packs of a step; all get the same number of them.
        """
        return cls(
            batches,
            lengths=prepared.encoded.lengths,
            images=prepared.encoded.num_images,
            budget=budget,
            num_processes=num_processes,
        )

    @property
    def packed(self) -> bool:
        """True: a pack is one row of samples end to end."""
        return True

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Return the sample indices of each pack of a step; steps count from 0."""
        return self._packs(step)

    def places(self, step: int, share: Share) -> tuple[int, ...]:
        """Return which packs of a step a process computes, in its order.

        Text comes first as the packs are ordered, so ``share.pictures_last`` holds anyway.
        """
        return tuple(range(len(self.step(step))))[share.rank :: share.size]

    def has_pictures(self, indices: Sequence[int]) -> bool:
        """Tell whether a pack shows any picture."""
        return bool(self.images[list(indices)].any())

    def _pack(self, step: int) -> tuple[tuple[int, ...], ...]:
        indices = [index for micro in self.batches.step(step) for index in micro]
        packs = pack(
            self.lengths[indices].tolist(),
            self.images[indices].tolist(),
            self.budget,
            self.num_processes,
        )
        return tuple(tuple(indices[place] for place in members) for members in packs)


def plan_of(
    prepared: Prepared,
    sources: Mapping[str, float],
    batch: Batch,
    *,
    seed: int,
    num_processes: int,
) -> Plan:
    """Return the plan that a recipe's batch asks for.

    Args:
        prepared: the samples.
        sources: sampling weight per task.
        batch: the recipe's section.
        seed: of the run.
        num_processes: that share a step.

    Raises:
        UserError: a sample is longer than a pack may be.
    """
    plain = BatchPlan.of(
        prepared,
        sources,
        seed=seed,
        micro_size=batch.per_device,
        num_micro=batch.size // batch.per_device,
    )
    if batch.packing is None:
        return plain
    budget = batch.packing.tokens
    _check_longest(int(prepared.encoded.lengths.max()), budget)
    return PackPlan.of(plain, prepared, budget=budget, num_processes=num_processes)


def _check_longest(longest: int, budget: int) -> None:
    if longest > budget:
        raise UserError(
            f"batch.packing allows {budget} tokens in a pack, but a sample has {longest}; "
            f"raise tokens to {longest} or lower max_length."
        )
