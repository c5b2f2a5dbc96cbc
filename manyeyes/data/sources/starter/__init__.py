"""The starter data: about ten thousand samples made offline, in seconds, from real sources.

``build`` is imported on first use, so that the vocabulary can be read without matplotlib or numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def build(directory: Path, *, seed: int, scale: float, image_size: int) -> None:
    """Write the starter data into ``directory``; ``builder`` does it."""
    from manyeyes.data.sources.starter.builder import build as build_starter

    build_starter(directory, seed=seed, scale=scale, image_size=image_size)
