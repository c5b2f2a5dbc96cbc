"""How much of the arithmetic of a step is on real tokens, with many ranks, simulated.

A rank pads its samples to its longest; a step ends when the slowest rank is done. So a step costs
ranks x batch x longest sample of all, and the efficiency is the real positions over that. (It is
the language model's share of a step; towers see pictures of one size.)

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

    from manyeyes.data.batches import Prepared

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
    return Lengths(tuple(encoded.length for encoded in prepared.encoded), words)


def efficiency(positions: Sequence[int], steps: Steps) -> float:
    """Return real positions over computed ones, waiting for the slowest rank included."""
    real = computed = 0
    for ranks in steps:
        slowest = max(len(rank) * max(positions[i] for i in rank) for rank in ranks)
        computed += len(ranks) * slowest
        real += sum(positions[i] for rank in ranks for i in rank)
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
    rows = []
    for world in WORLDS:
        if len(lengths.words) < 2 * BATCH_SIZE * world:
            continue
        plans = [
            ours.planned_steps(lengths.positions, lengths.pictures, BATCH_SIZE, world, seed)
            for seed in SEEDS
        ]
        authors = [authors_order(lengths.words, BATCH_SIZE, world, seed) for seed in SEEDS]
        tuned = [
            grouped_order(lengths.positions, lengths.pictures, BATCH_SIZE, world, seed)
            for seed in SEEDS
        ]
        others = {
            label: np.median(
                [efficiency(lengths.positions, dealt(o, BATCH_SIZE, world)) for o in orders]
            )
            for label, orders in (("LLaVA's sampler", authors), ("grouped by true length", tuned))
        }
        rows.append(
            Row(
                f"token efficiency of the sampler, {name}, {world} ranks x {BATCH_SIZE}",
                "",
                Spread.of([efficiency(lengths.positions, plan) for plan in plans]),
                TARGET,
                ", ".join(f"{label} {value:.2f}" for label, value in others.items()),
            )
        )
    return rows
