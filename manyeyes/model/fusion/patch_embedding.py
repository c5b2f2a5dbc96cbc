"""EVE's way in: the tokens of the patch embedding layer, as many as the picture's shape has.

Nothing is fused. One encoder makes a class token, cells and row ends out of the rectangle that a
picture takes on its canvas (``encoders/patch_embedding.py``); all of them are projected and
spliced. The number of tokens depends on the picture: at most ``1 + grid * (grid + 1)``.

It is a fusion because a fusion says which features it asks for and which tokens it makes of them.
"""

# ruff: noqa: N803  (a tensor's name ends in its shape)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyeyes.errors import UserError
from manyeyes.model.encoders.patch_embedding import (
    PatchEmbeddingArchitecture,
    PatchEmbeddingEncoder,
)
from manyeyes.model.fusion.base import Eyes, Fusion, is_trainable
from manyeyes.model.processor import Processor
from manyeyes.model.rectangle import Rectangles, num_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from manyeyes.model.encoders import Encoder


class PatchEmbeddingFusion(Fusion):
    """Hands on what the one encoder sees."""

    def __init__(self, eyes: Eyes) -> None:
        super().__init__()
        spec = eyes.specs[0] if len(eyes.specs) == 1 else None
        if spec is None or not isinstance(spec.architecture, PatchEmbeddingArchitecture):
            raise UserError(
                "Fusion patch_embedding takes one encoder of the family patch_embedding; "
                f"model.encoders has {', '.join(_called(eyes))}."
            )
        if eyes.grids != (spec.native_grid,):
            raise UserError(
                f"The patches of {eyes.names[0]} make {spec.native_grid} cells a side, which "
                f"cannot be resized: set model.grid to {spec.native_grid}, not {eyes.grids[0]}."
            )
        self.spec = spec
        self.pieces = spec.architecture.pieces
        self.side = spec.native_grid
        self.group_widths = (spec.width,)
        self.num_tokens = 1 + self.side * (self.side + 1)

    def see(
        self, experts: Mapping[str, Encoder], pixels: Tensor, image_sizes: Tensor | None = None
    ) -> list[Tensor]:
        """Return the tokens of every picture (I, V, C), zeros behind the shorter ones."""
        (expert,) = experts.values()
        assert isinstance(expert, PatchEmbeddingEncoder)
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trainable(expert)):
            return [expert.tokens(pixels, self.rectangles(image_sizes, len(pixels)))]

    def forward(self, maps_ICHW: Sequence[Tensor]) -> list[Tensor]:
        """Return the one group of tokens (I, V, C)."""
        return list(maps_ICHW)

    def token_counts(self, image_sizes: Tensor | None) -> Tensor | None:
        """Return the tokens of every picture, (I,) on the CPU; None for squares alone."""
        if image_sizes is None:
            return None
        return self.rectangles(image_sizes, len(image_sizes)).num_tokens_I

    def picture_tokens(self, width: int, height: int) -> int:
        """Return the tokens of a picture of a size in pixels."""
        return num_tokens(width, height, self.pieces, self.side)

    def processor(self, canvas_size: int) -> Processor:  # noqa: ARG002  (always all it can see)
        """Return what lays pictures out on the canvas; small ones are enlarged to fill it."""
        return Processor(canvas_size=self.spec.image_size, pieces=self.pieces)

    def rectangles(self, image_sizes: Tensor | None, num_images: int) -> Rectangles:
        """Return where pictures lie on their canvases, in cells."""
        return Rectangles.of(image_sizes, num_images, pieces=self.pieces, side=self.side)


def _called(eyes: Eyes) -> list[str]:
    return [f"{name} ({family})" for name, family in zip(eyes.names, eyes.families, strict=True)]
