"""The contract of every encoder: a canvas in, a square grid of features out.

An encoder carries its preprocessing (size and statistics), because towers disagree about both and
a mixture that normalises once for all of them feeds most towers pixels they were not trained on.
All of it runs on the device of the canvas. A family file says only how its tower is built, how
pixels become the native grid, and how published checkpoints name the tower's tensors.

There are no buffers: constants are made from the spec on first use per device, because a buffer
that is not saved would be garbage in a model built on the meta device and then filled.

Shapes: B images, C channels of the features, S canvas side, P input side, G native grid, H = W
common grid.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.model.encoders.spec import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import EncoderSpec, Triple

Normalization = Literal["per_encoder", "shared"]


class Encoder(nn.Module):
    """A pretrained tower with its own eyes: resizes, normalises, encodes, resizes to the grid.

    Subclasses set ``tower`` (a module whose ``state_dict`` has the published key names) and
    implement ``native``; they may override ``preprocess`` and ``rename``.
    """

    tower: nn.Module

    def __init__(self, spec: EncoderSpec, grid: int, normalization: Normalization) -> None:
        super().__init__()
        self.spec = spec
        self.grid = grid
        self.normalization = normalization
        self.unused_keys: frozenset[str] = frozenset()

    def forward(self, images: Tensor) -> Tensor:
        """Encode a canvas.

        Args:
            images: (B, 3, S, S), uint8 in 0..255 or floating point in 0..1.

        Returns:
            (B, C, H, W) with H = W = the common grid.
        """
        pixels_B3PP = self.preprocess(images)
        features_BCGG = self.native(pixels_B3PP)
        return self.to_grid(features_BCGG)  # (B, C, H, W)

    def preprocess(self, images: Tensor) -> Tensor:
        """Return the tower's input: resized (antialiased) and normalised, float32 (B, 3, P, P)."""
        pixels = resize_canvas(unit_range(images), self.spec.image_size, self.spec.resample)
        shared = self.normalization == "shared"
        mean = statistics(CLIP_MEAN if shared else self.spec.mean, pixels.device)
        std = statistics(CLIP_STD if shared else self.spec.std, pixels.device)
        return (pixels - mean) / std

    def native(self, pixels: Tensor) -> Tensor:
        """Return the tower's own feature grid (B, C, G, G) for preprocessed pixels."""
        raise AssertionError(f"{type(self).__name__} does not encode {tuple(pixels.shape)}")

    def to_grid(self, features: Tensor) -> Tensor:
        """Resize (B, C, G, G) to the common grid, as Eagle does: fp32 bilinear, corners aligned."""
        expected = (self.spec.width, self.spec.native_grid, self.spec.native_grid)
        assert tuple(features.shape[1:]) == expected, (features.shape, expected)
        if self.spec.native_grid == self.grid:
            return features
        resized = functional.interpolate(
            features.float(), size=(self.grid, self.grid), mode="bilinear", align_corners=True
        )
        return resized.to(features.dtype)

    def rename(self, key: str) -> str | tuple[str, ...] | None:
        """Map a key of a published checkpoint to a key of ``tower``; None if it is not part of it.

        Several keys, where the published tensor is a stack of equal parts along its first axis.
        Keys of the tower itself map to themselves.
        """
        return key

    def prune(self, *modules: str) -> None:
        """Remove parts of the tower that the features do not pass through.

        They would be parameters without a gradient (which DDP refuses and an optimizer would
        decay). Loading ignores their keys.
        """
        before = set(self.tower.state_dict())
        for path in modules:
            parent, _, name = path.rpartition(".")
            delattr(self.tower.get_submodule(parent), name)
        self.unused_keys |= before - set(self.tower.state_dict())

    def drop_blocks(self, blocks: nn.ModuleList) -> None:
        """Remove the blocks behind ``feature_layer``."""
        before = set(self.tower.state_dict())
        del blocks[len(blocks) + 1 + self.spec.feature_layer :]
        self.unused_keys |= before - set(self.tower.state_dict())

    @property
    def dtype(self) -> torch.dtype:
        """The type the tower computes in."""
        return next(self.parameters()).dtype


def unit_range(images: Tensor) -> Tensor:
    """Return (B, 3, S, S) images as float32 in 0..1."""
    if images.dtype == torch.uint8:
        return images.float() / 255.0
    return images.float()


def resize_canvas(images: Tensor, size: int, mode: str) -> Tensor:
    """Resize float images to (B, 3, size, size), antialiased; a no-op at the right size."""
    if images.shape[-1] == size and images.shape[-2] == size:
        return images
    return functional.interpolate(
        images, size=(size, size), mode=mode, align_corners=False, antialias=True
    )


@functools.lru_cache(maxsize=64)
def statistics(values: Triple, device: torch.device) -> Tensor:
    """Return per-channel constants as (1, 3, 1, 1) on a device."""
    # A tensor made under inference mode could not be used for training later on.
    with torch.inference_mode(mode=False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1)


def resample_positions(table: Tensor, side: int, *, antialias: bool) -> Tensor:
    """Interpolate a learned position table to another grid.

    Args:
        table: (n * n, C), row-major.
        side: of the wanted grid.
        antialias: whether a smaller grid averages what it skips.

    Returns:
        (side * side, C); bicubic in float32, cast back to the table's type.
    """
    num_positions, width = table.shape
    old = int(num_positions**0.5)
    assert old * old == num_positions, f"{num_positions} positions are not a square"
    if old == side:
        return table
    square = table.float().view(1, old, old, width).permute(0, 3, 1, 2)  # (1, C, n, n)
    resized = functional.interpolate(
        square, size=(side, side), mode="bicubic", align_corners=False, antialias=antialias
    )
    return resized.permute(0, 2, 3, 1).reshape(side * side, width).to(table.dtype)
