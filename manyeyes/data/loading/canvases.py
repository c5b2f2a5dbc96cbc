"""Canvases: decoded pictures as the model takes them, kept in memory while there is room.

A picture that cannot be used (its bytes are cut off, changed, or no picture) becomes a black canvas
and a sentence: who asked decides whether that is the end. What may pass by itself, a disk or a
store that does not answer, is an error and never a property of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from manyeyes.data.dataset.images import MAX_PIXELS, BadPictureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.data.dataset.images import Picture
    from manyeyes.data.dataset.index import Samples
    from manyeyes.data.dataset.sample import ImageRef

    ToCanvas: TypeAlias = Callable[[Picture], Tensor]
    """Makes a canvas uint8 (3, S, S) of a picture, S the same for all."""

CACHE_BYTES = 512 * 1024 * 1024
"""Decoded pictures kept in memory; a small dataset is then decoded once."""


def canvas_side(samples: Samples, largest: int) -> int:
    """Return the side of the canvas: the longest edge of any picture, at most ``largest``."""
    sizes = samples.source.pictures.sizes[samples.picture_places()]
    return min(largest, int(sizes.max(initial=0)) or largest)


@dataclass(frozen=True)
class Canvases:
    """The canvases of some pictures."""

    pixels: Tensor | None
    """uint8 (number of pictures, 3, S, S); None for no pictures."""
    problems: tuple[str, ...]
    """Per picture why it cannot be used; empty where it can."""


def make_canvases(dataset: Dataset, to_canvas: ToCanvas, refs: Sequence[ImageRef]) -> Canvases:
    """Read and decode pictures; those that cannot be used are black.

    Raises:
        UserError: a shard is missing or cannot be read.
        ManyeyesError: the bucket with the shards does not answer.
    """
    made, problems = [], []
    for ref in dataset.ahead(refs):
        canvas, problem = _make_canvas(dataset, to_canvas, ref)
        made.append(canvas)
        problems.append(problem)
    return Canvases(torch.stack(made) if made else None, tuple(problems))


def _make_canvas(dataset: Dataset, to_canvas: ToCanvas, ref: ImageRef) -> tuple[Tensor, str]:
    try:
        return to_canvas(dataset.read_for_model(ref)), ""
    except BadPictureError as error:
        if not 0 < ref.width * ref.height <= MAX_PIXELS:
            raise
        black = np.zeros((ref.height, ref.width, 3), dtype=np.uint8)
        return torch.zeros_like(to_canvas(black)), str(error)


class PixelCache:
    """Decoded canvases by picture; what was put in stays until ``limit`` bytes are full.

    Nothing is evicted: samples come without replacement, so the oldest entry is the next needed.
    """

    def __init__(self, dataset: Dataset, to_canvas: ToCanvas, limit: int = CACHE_BYTES) -> None:
        """Keep what ``to_canvas`` makes of pictures."""
        self.dataset = dataset
        self.to_canvas = to_canvas
        self.limit = limit
        self._kept: dict[ImageRef, tuple[Tensor, str]] = {}
        self._bytes = 0

    def missing(self, refs: Iterable[ImageRef]) -> tuple[ImageRef, ...]:
        """Return the pictures that are not kept, each once."""
        return tuple(dict.fromkeys(ref for ref in refs if ref not in self._kept))

    def get(self, refs: Sequence[ImageRef]) -> Canvases:
        """Return the canvases of pictures.

        Raises:
            UserError: a shard is missing or cannot be read.
        """
        missing = self.missing(refs)
        return self.join(refs, missing, make_canvases(self.dataset, self.to_canvas, missing))

    def join(
        self, refs: Sequence[ImageRef], made_refs: Sequence[ImageRef], made: Canvases
    ) -> Canvases:
        """Return the canvases of pictures: those kept, and those made elsewhere."""
        fresh = {}
        canvases = () if made.pixels is None else made.pixels
        for ref, canvas, problem in zip(made_refs, canvases, made.problems, strict=True):
            fresh[ref] = canvas, problem
            if ref not in self._kept and self._bytes + canvas.nbytes <= self.limit:
                # A copy: a slice would keep the whole batch, and a worker's shared memory.
                self._kept[ref] = canvas.clone(), problem
                self._bytes += canvas.nbytes
        found = [fresh[ref] if ref in fresh else self._kept[ref] for ref in refs]
        pixels = torch.stack([canvas for canvas, _ in found]) if found else None
        return Canvases(pixels, tuple(problem for _, problem in found))
