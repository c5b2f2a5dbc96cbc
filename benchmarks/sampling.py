"""How much of the arithmetic of a step is on real tokens, with many ranks, simulated.

A rank that pads its samples to its longest computes batch x longest sample; one that packs them
computes its positions. A step ends when the slowest rank is done, so it costs ranks x the most that
one of them computes, and the efficiency is the real positions over that. (It is the language
model's share of a step. Towers see pictures of one size: their share is in the details, the
pictures over ranks x the most that one of them has.)

The product packs, with as many positions allowed as the longest samples would take padded; so a
step is one pack for every rank, and of the same samples as without packing.

Lengths are those of the starter data, and three synthetic sets with the shapes of LLaVA-1.5
(576 visual tokens, 6% text alone), Eagle (1,024, 19%) and EVE (a picture has as many rows of 24 as
its aspect ratio asks for). Text is log-normal, a word has 1.3 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import ours
from benchmarks.baseline.sampler import authors_order, grouped_order
from benchmarks.results import Row, Spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyeyes.data.loading.batches import Prepared

TARGET = 0.97
WORLDS = (8, 32)
BATCH_SIZE = 4
LONGEST = 2048
SIGMA = 0.9
TOKENS_PER_WORD = 1.3
SEEDS = (0, 1, 2, 3, 4)

Steps = list[list[list[int]]]
"""Steps, of ranks, of sample indices."""


@dataclass(frozen=True)
class Lengths:
    """A training set, of which only lengths are known."""

    positions: tuple[int, ...]
    """Per sample its positions, visual tokens included."""
    words: tuple[int, ...]
    """Per sample its words, negative for text alone: what LLaVA's sampler goes by."""

    @property
    def pictures(self) -> tuple[bool, ...]:
        """Per sample whether it shows one."""
        return tuple(count > 0 for count in self.words)


def synthetic(shape: str, num: int, seed: int) -> Lengths:
    """Draw a set of the shape of ``llava``, ``eagle`` or ``eve``."""
    generator = np.random.default_rng(seed)
    visual, text_share = {"llava": (576, 0.06), "eagle": (1024, 0.19), "eve": (0, 0.06)}[shape]
    shown = generator.random(num) >= text_share
    median = np.where(shown, 190, 350)
    words = np.maximum(2, median / TOKENS_PER_WORD * generator.lognormal(0.0, SIGMA, num))
    # EVE: the longer side has 24 patches, the shorter one by the picture's aspect ratio.
    rows = np.clip(np.round(24 * generator.beta(4.0, 1.5, num)), 6, 24)
    visual_tokens = rows * 25 + 1 if shape == "eve" else np.full(num, visual)
    positions = words * TOKENS_PER_WORD + np.where(shown, visual_tokens, 0)
    return Lengths(
        tuple(np.minimum(positions, LONGEST).astype(int).tolist()),
        tuple(np.where(shown, words, -words).astype(int).tolist()),
    )


def of_prepared(prepared: Prepared) -> Lengths:
    """Read the lengths off encoded samples."""
    words = tuple(
        max(1, sum(len(turn.text.split()) for turn in sample.turns))
        * (1 if encoded.num_images else -1)
        for sample, encoded in zip(prepared.samples, prepared.encoded, strict=True)
    )
    return Lengths(tuple(prepared.encoded.lengths.tolist()), words)


def efficiency(positions: Sequence[int], steps: Steps, *, padded: bool = True) -> float:
    """Return real positions over computed ones, waiting for the slowest rank included.

    Args:
        positions: per sample.
        steps: of the plan.
        padded: to the longest sample of a rank; else a rank's samples stand end to end.
    """
    real = computed = 0
    for ranks in steps:
        loads = [sum(positions[i] for i in rank) for rank in ranks]
        widths = (
            [len(rank) * max(positions[i] for i in rank) for rank in ranks] if padded else loads
        )
        computed += len(ranks) * max(widths)
        real += sum(loads)
    return real / computed


def dealt(order: Sequence[int], batch_size: int, world_size: int) -> Steps:
    """Cut an order as Hugging Face's loader does: batch by batch, one rank after another."""
    together = batch_size * world_size
    return [
        [list(order[i + r * batch_size : i + (r + 1) * batch_size]) for r in range(world_size)]
        for i in range(0, len(order) - together + 1, together)
    ]


def rows_of(name: str, lengths: Lengths) -> list[Row]:
    """Compare the samplers on one set; the efficiency itself is what the target is about."""
    return [
        _row(name, lengths, world)
        for world in WORLDS
        if len(lengths.words) >= 2 * BATCH_SIZE * world
    ]


def _row(name: str, lengths: Lengths, world: int) -> Row:
    positions, pictures = lengths.positions, lengths.pictures
    size = BATCH_SIZE
    budget = size * max(positions)
    packed = [
        ours.planned_steps(positions, pictures, size, world, seed, budget=budget) for seed in SEEDS
    ]
    others: dict[str, list[Steps]] = {
        "without packs": [
            ours.planned_steps(positions, pictures, size, world, seed) for seed in SEEDS
        ],
        "LLaVA's sampler": [
            dealt(authors_order(lengths.words, size, world, seed), size, world) for seed in SEEDS
        ],
        "grouped by true length": [
            dealt(grouped_order(positions, pictures, size, world, seed), size, world)
            for seed in SEEDS
        ],
    }
    shown = np.median([efficiency(list(map(int, pictures)), p, padded=False) for p in packed])
    details = [f"{shown:.2f} of the pictures"] + [
        f"{label} {np.median([efficiency(positions, plan) for plan in plans]):.2f}"
        for label, plans in others.items()
    ]
    return Row(
        f"token efficiency of the sampler, {name}, {world} ranks x {size}",
        "",
        Spread.of([efficiency(positions, plan, padded=False) for plan in packed]),
        TARGET,
        ", ".join(details),
    )
