"""Pix2Struct's image encoder: standardised patches that carry their row and column.

transformers cuts the patches in its image processor, image by image in numpy, which inside a
forward pass means a round trip to the CPU per step. ``flatten_patches`` computes the same numbers
on the device, for square images (the order matters: the *original* image is standardised, then
resized). Ids start at 1; 0 is padding, of which a square grid has none. Pixels are always
standardised per image, so ``normalization: shared`` changes nothing here, as in Eagle.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from transformers import Pix2StructVisionConfig, Pix2StructVisionModel

from manyeyes.model.encoders.base import Encoder, Normalization, resize_canvas, unit_range
from manyeyes.model.encoders.spec import Architecture

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import EncoderSpec

ENCODER_PARTS = ("encoder.embeddings.", "encoder.encoder.", "encoder.layernorm.")


@dataclass(frozen=True)
class Pix2StructArchitecture(Architecture):
    """Pix2Struct's image encoder (arXiv:2210.03347)."""

    depth: int
    heads: int
    head_width: int
    mlp_width: int
    patch: int
    positions: int
    """Rows of each of the two position tables; ids start at 1."""
    family: Literal["pix2struct"] = "pix2struct"


class Pix2StructEncoder(Encoder):
    """Pix2Struct features after the final norm."""

    tower: Pix2StructVisionModel

    def __init__(
        self,
        spec: EncoderSpec,
        architecture: Pix2StructArchitecture,
        grid: int,
        normalization: Normalization,
    ) -> None:
        super().__init__(spec, grid, normalization)
        self.patch = architecture.patch
        self.tower = Pix2StructVisionModel(
            Pix2StructVisionConfig(
                hidden_size=spec.width,
                patch_embed_hidden_size=3 * architecture.patch**2,
                d_ff=architecture.mlp_width,
                d_kv=architecture.head_width,
                num_hidden_layers=architecture.depth,
                num_attention_heads=architecture.heads,
                seq_len=architecture.positions,
                # transformers' default of 1e-10 leaves a tower that is not loaded at zero.
                initializer_range=0.02,
            )
        )
        blocks = self.tower.encoder.layer
        assert isinstance(blocks, nn.ModuleList)
        self.drop_blocks(blocks)

    def preprocess(self, images: Tensor) -> Tensor:
        """Return flattened patches (B, G * G, 2 + 3 * patch**2), float32."""
        pixels = standardize(unit_range(images) * 255.0)
        pixels = resize_canvas(pixels, self.spec.image_size, self.spec.resample)
        return flatten_patches(pixels, self.patch)

    def native(self, pixels: Tensor) -> Tensor:
        """Return (B, C, G, G) for flattened patches."""
        batch, num_patches, _ = pixels.shape
        hidden_BNC = self.tower.embeddings(pixels.to(self.dtype))
        for block in self.tower.encoder.layer:
            hidden_BNC, _ = block(hidden_BNC)
        hidden_BNC = self.tower.layernorm(hidden_BNC)
        grid = self.spec.native_grid
        assert num_patches == grid * grid, (num_patches, grid)
        features: Tensor = hidden_BNC.transpose(1, 2)
        return features.reshape(batch, self.spec.width, grid, grid)

    def rename(self, key: str) -> str | None:
        """Accept the tower alone or a whole Pix2Struct (``encoder.`` and ``decoder.``)."""
        if key.startswith("decoder."):
            return None
        if key.startswith(ENCODER_PARTS):
            key = key.removeprefix("encoder.")
        return None if key in self.unused_keys else key


def standardize(images: Tensor) -> Tensor:
    """Subtract each image's mean and divide by its deviation (population), floored at 1/sqrt(n).

    The floor is that of TensorFlow's ``per_image_standardization``, which Pix2Struct was trained
    with: a blank image becomes zeros instead of noise.
    """
    num_values = images[0].numel()
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = images.std(dim=(1, 2, 3), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp_min(num_values**-0.5)


def flatten_patches(images: Tensor, patch: int) -> Tensor:
    """Cut square images into rows of patches, each prefixed by its 1-based row and column.

    Args:
        images: (B, 3, P, P) with P a multiple of ``patch``.
        patch: side of a patch in pixels.

    Returns:
        (B, G * G, 2 + patch * patch * 3), G = P / patch; a patch's values are ordered row,
        column, channel.
    """
    batch, channels, side, _ = images.shape
    grid = side // patch
    squares = images.reshape(batch, channels, grid, patch, grid, patch)
    patches_BND = squares.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid * grid, -1)
    ids = torch.arange(1, grid + 1, device=images.device, dtype=images.dtype)
    rows_N1 = ids.repeat_interleave(grid).unsqueeze(1)
    columns_N1 = ids.repeat(grid).unsqueeze(1)
    places = torch.cat([rows_N1, columns_N1], dim=1).expand(batch, -1, -1)
    return torch.cat([places, patches_BND], dim=2)
