"""Canvases: decoded pictures as the model takes them, kept in memory while there is room."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image
    from torch import Tensor

    from manyeyes.data.dataset import Dataset
    from manyeyes.data.sample import ImageRef, Sample

CACHE_BYTES = 512 * 1024 * 1024
"""Decoded pictures kept in memory; a small dataset is then decoded once."""


def canvas_side(samples: Sequence[Sample], largest: int) -> int:
    """Return the side of the canvas: the longest edge of any picture, at most ``largest``."""
    edges = [max(ref.width, ref.height) for sample in samples for ref in sample.images]
    return min(largest, max(edges, default=largest))


class PixelCache:
    """Decoded canvases by picture; what was put in stays until ``limit`` bytes are full.

    Nothing is evicted: samples come without replacement, so the oldest entry is the next needed.
    """

    def __init__(
        self,
        dataset: Dataset,
        to_canvas: Callable[[Image.Image], Tensor],
        limit: int = CACHE_BYTES,
    ) -> None:
        """Keep what ``to_canvas`` makes of pictures: uint8 (3, S, S), S the same for all."""
        self.dataset = dataset
        self.to_canvas = to_canvas
        self.limit = limit
        self._canvases: dict[str, Tensor] = {}
        self._bytes = 0

    def get(self, ref: ImageRef) -> Tensor:
        """Return the canvas (3, S, S) of a picture.

        Raises:
            UserError: the picture cannot be read or decoded.
        """
        found = self._canvases.get(ref.sha256)
        if found is not None:
            return found
        made = self.to_canvas(self.dataset.read_image(ref))
        if self._bytes + made.nbytes <= self.limit:
            self._canvases[ref.sha256] = made
            self._bytes += made.nbytes
        return made
