"""How much of everything the starter data hold. Light: who wants to know builds nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PICTURES: Mapping[str, Mapping[str, int]] = {
    "train": {"numbers": 1100, "charts": 900, "documents": 1300, "scenes": 1100},
    "val": {"numbers": 60, "charts": 50, "documents": 60, "scenes": 60},
    "test": {"numbers": 150, "charts": 110, "documents": 130, "scenes": 150},
}
"""Split and kind to the number of pictures at scale 1."""

SAMPLES: Mapping[str, Mapping[str, int]] = {
    "train": {
        "numbers": 1450, "two_images": 200, "charts": 1350, "documents": 1750, "scenes": 1350,
        "pope": 900, "captions": 1800, "chat": 350,
    },
    "val": {
        "numbers": 50, "two_images": 10, "charts": 60, "documents": 60, "scenes": 60,
        "pope": 60, "captions": 40, "chat": 10,
    },
    "test": {
        "numbers": 130, "two_images": 20, "charts": 150, "documents": 150, "scenes": 150,
        "pope": 150, "captions": 0, "chat": 0,
    },
}  # fmt: skip
"""Split and task to the number of samples at scale 1; ``two_images`` belongs to numbers."""

SMALLEST = {"numbers": 6, "charts": 4, "documents": 4, "scenes": 6}
DRAWN_FIRST = ("test", "val", "train")
UNSCORED = ("captions", "chat")
"""Tasks whose samples have no accepted answers."""


def tasks(split: str, *, scored: bool = False) -> tuple[str, ...]:
    """Return the tasks of a split; with ``scored`` those that can be evaluated."""
    return tuple(
        task
        for task, count in SAMPLES[split].items()
        if count and task != "two_images" and not (scored and task in UNSCORED)
    )


def scaled(count: int, split: str, scale: float) -> int:
    """Scale a quota; held-out splits stop growing at scale 1, and what is asked for is never 0."""
    factor = scale if split == "train" else min(scale, 1.0)
    return max(1, round(count * factor)) if count else 0
