"""In what order samples come: LLaVA's sampler as it behaves, and a good one for the tuned baseline.

LLaVA's sampler (``group_by_modality_length``) has these properties, kept here because the seed
systems ship them:

- A length is the number of words between spaces. The visual tokens of a picture, 576 of them, are
  not counted. Text-only samples carry a minus sign.
- Each modality is permuted and cut into *megabatches* of world size x batch: one global batch,
  where Hugging Face's own grouping takes fifty. So hardly anything is grouped.
- A megabatch is sorted, longest first, and dealt out so that every rank gets the same *sum* of
  words: each rank holds long and short samples on purpose, and pads the short ones.
- The last megabatch of each modality, whole or not, is taken off; both are joined, in index order,
  into one mixed batch at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

MEGABATCHES = 50
"""Global batches that the tuned order sorts together; transformers' ``LengthGroupedSampler``."""


def authors_order(words: Sequence[int], batch_size: int, world_size: int, seed: int) -> list[int]:
    """Return sample indices in the order of LLaVA's sampler.

    Args:
        words: per sample its words between spaces, negative for text alone; never 0.
        batch_size: samples of a rank.
        world_size: ranks, times the accumulation (which LLaVA counts as ranks).
        seed: of the permutations.
    """
    generator = np.random.default_rng(seed)
    together = batch_size * world_size
    megabatches: list[list[int]] = []
    rest: list[int] = []
    kinds = [[i for i, n in enumerate(words) if n > 0], [i for i, n in enumerate(words) if n < 0]]
    for kind in kinds:
        permuted = [kind[place] for place in generator.permutation(len(kind))]
        order = [i for part in _cut(permuted, together) for i in _deal(part, words, world_size)]
        parts = _cut(order, together)
        if all(kinds):
            rest += parts.pop()
        megabatches += parts
    if not all(kinds):
        return [i for part in megabatches for i in part]
    shuffled = [megabatches[place] for place in generator.permutation(len(megabatches))]
    return [i for part in [*shuffled, sorted(rest)] for i in part]


def _deal(part: Sequence[int], words: Sequence[int], world_size: int) -> list[int]:
    """Deal a megabatch out to the ranks, longest first, to whoever has the fewest words so far."""
    falling = sorted(part, key=lambda i: abs(words[i]), reverse=True)
    if len(falling) % world_size:
        return [i for rank in range(world_size) for i in falling[rank::world_size]]
    hands: list[list[int]] = [[] for _ in range(world_size)]
    sums = [0.0] * world_size
    for index in falling:
        rank = sums.index(min(sums))
        hands[rank].append(index)
        sums[rank] += abs(words[index])
        if len(hands[rank]) == len(falling) // world_size:
            sums[rank] = float("inf")
    return [i for hand in hands for i in hand]


def grouped_order(
    lengths: Sequence[int],
    pictures: Sequence[bool],
    batch_size: int,
    world_size: int,
    seed: int,
) -> list[int]:
    """Return sample indices so that a global batch has one modality and like lengths.

    Args:
        lengths: per sample its true positions, visual tokens included.
        pictures: per sample whether it shows any.
        batch_size: samples of a rank.
        world_size: ranks.
        seed: of the permutations.
    """
    generator = np.random.default_rng(seed)
    together = batch_size * world_size
    batches: list[list[int]] = []
    rest: list[int] = []
    for shown in (True, False):
        kind = [i for i, has in enumerate(pictures) if has is shown]
        permuted = [kind[place] for place in generator.permutation(len(kind))]
        for part in _cut(permuted, MEGABATCHES * together):
            falling = sorted(part, key=lambda i: lengths[i], reverse=True)
            for batch in _cut(falling, together):
                if len(batch) == together:
                    batches.append(batch)
                else:
                    rest += batch
    shuffled = [batches[place] for place in generator.permutation(len(batches))]
    return [i for batch in [*shuffled, rest] for i in batch]


def _cut(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
