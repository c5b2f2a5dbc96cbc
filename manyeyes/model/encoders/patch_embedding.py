"""EVE's patch embedding layer: no tower, one convolution and two attentions (arXiv:2406.11832).

The rectangle that a picture takes on its canvas is cut into patches, 2 x 2 patches are pooled into
a cell, and a class vector looks at all cells:

    patches = Conv(pixels)                            stride = kernel, no bias
    cell    = mean of its patches + Attention(mean, its patches)
    class   = learned vector + Attention(vector, all cells of the picture)
    tokens  = [class, row, end, row, end, ...]        end: a learned vector

Both attentions have one layer, normalise query and keys, and divide by the square root of the
*whole* width, not of a head's, as the authors' code does. Keys are the authors' names.

The authors' code loops over samples. Here cells of all pictures stand in one list (a cell looks at
its own patches only), and only the class vector's attention is padded to the largest picture.

As an encoder among others it gives the cells of the whole canvas as a map; with the fusion
``patch_embedding`` it gives tokens.

Shapes: I images, T cells of all pictures, V most tokens of a picture, C width, S canvas side,
P input side, G cells a side.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from manyeyes.model.encoders.base import Encoder, Normalization
from manyeyes.model.encoders.spec import Architecture
from manyeyes.model.rectangle import Rectangles

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import EncoderSpec


@dataclass(frozen=True)
class PatchEmbeddingArchitecture(Architecture):
    """EVE's patch embedding layer: no tower at all."""

    patch: int
    pooling: int
    """Side of the square of patches that make a cell."""
    heads: int
    pieces: int
    """A picture takes whole pieces of its canvas, this many along the longer side: the teacher's
    grid, so that each of its cells is one cell here, or a square of them."""
    family: Literal["patch_embedding"] = "patch_embedding"


class PoolingAttention(nn.Module):
    """One query per place looks at its own keys; what it finds is added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.kv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width, bias=False))
        self.proj = nn.Linear(width, width)

    def forward(self, query_NC: Tensor, keys_NKC: Tensor, mask_NK: Tensor | None = None) -> Tensor:
        """Return the queries (N, C) with what they found added.

        Args:
            query_NC: one per place.
            keys_NKC: the K things each place may look at.
            mask_NK: bool, True where there is such a thing; None for everywhere.
        """
        keys, values = self.kv(keys_NKC).chunk(2, dim=-1)
        found_NC = attend(self.q(query_NC), keys, values, heads=self.heads, mask_NK=mask_NK)
        added_NC: Tensor = query_NC + self.proj(found_NC)
        return added_NC


def attend(
    query_NC: Tensor,
    keys_NKC: Tensor,
    values_NKC: Tensor,
    *,
    heads: int,
    mask_NK: Tensor | None = None,
) -> Tensor:
    """Attend with one query per place; scores are divided by the square root of C.

    Not PyTorch's attention: its kernels are made for many queries and few places, and refuse more
    than 65,535 places.

    Returns:
        (N, C).
    """
    num, num_keys, width = keys_NKC.shape
    split = (heads, width // heads)
    query_NHD = query_NC.view(num, *split) * width**-0.5
    scores_NHK = torch.einsum("nhd,nkhd->nhk", query_NHD, keys_NKC.view(num, num_keys, *split))
    if mask_NK is not None:
        scores_NHK = scores_NHK.masked_fill(~mask_NK.unsqueeze(1), float("-inf"))
    weights_NHK = scores_NHK.float().softmax(dim=-1).to(values_NKC.dtype)
    values_NKHD = values_NKC.view(num, num_keys, *split)
    return torch.einsum("nhk,nkhd->nhd", weights_NHK, values_NKHD).flatten(1)


class PatchEmbeddingLayer(nn.Module):
    """Convolution, pooling attention, class vector and row ends."""

    def __init__(self, width: int, patch: int, pooling: int, heads: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.split_embedding = nn.Parameter(torch.randn(width))
        self.local_attention = PoolingAttention(width, heads)
        self.global_attention = PoolingAttention(width, heads)

    def forward(self, pixels_I3PP: Tensor, rectangles: Rectangles, pieces: int) -> Tensor:
        """Return the tokens of every picture, (I, V, C), zeros behind the shorter ones.

        Args:
            pixels_I3PP: normalised canvases.
            rectangles: where on them the pictures lie.
            pieces: what the free parts of the canvas are counted in.
        """
        device = pixels_I3PP.device
        places_T = rectangles.on_canvas_T(pieces).to(device)
        cells_TC = self.cells(pixels_I3PP, places_T)
        class_IC = self._classes(cells_TC, rectangles)
        ends_image_R, ends_R = rectangles.row_ends()
        ends_RC = self.split_embedding.to(cells_TC.dtype).expand(len(ends_R), -1)
        longest = int(rectangles.num_tokens_I.max())
        starts_I = torch.arange(rectangles.num_images, device="cpu") * longest
        cell_places_T = starts_I[rectangles.image_T] + rectangles.in_tokens_T()
        places = torch.cat([starts_I, starts_I[ends_image_R] + ends_R, cell_places_T]).to(device)
        parts = torch.cat([class_IC.to(cells_TC.dtype), ends_RC, cells_TC])
        tokens = cells_TC.new_zeros(len(starts_I) * longest, cells_TC.shape[-1])
        return tokens.index_copy(0, places, parts).view(len(starts_I), longest, -1)

    def cells(self, pixels_I3PP: Tensor, places_T: Tensor | None = None) -> Tensor:
        """Return pooled patches (T, C), at the given places of the flattened canvases or all."""
        patches_ICHH = self.patch_embedding(pixels_I3PP)
        images, width, side, _ = patches_ICHH.shape
        cuts = (side // self.pooling, self.pooling, side // self.pooling, self.pooling)
        squares = patches_ICHH.reshape(images, width, *cuts).permute(0, 2, 4, 3, 5, 1)
        patches_TKC = squares.reshape(-1, self.pooling**2, width)
        if places_T is not None:
            patches_TKC = patches_TKC.index_select(0, places_T)
        pooled: Tensor = self.local_attention(patches_TKC.mean(dim=1), patches_TKC)
        return pooled

    def _classes(self, cells_TC: Tensor, rectangles: Rectangles) -> Tensor:
        """Let the class vector look at all cells of each picture: (I, C)."""
        counts_I = rectangles.num_cells_I
        images, most = rectangles.num_images, int(counts_I.max())
        mask_IL: Tensor | None = None
        if images * most != len(cells_TC):
            places_T = rectangles.image_T * most + rectangles.in_picture_T()
            padded = cells_TC.new_zeros(images * most, cells_TC.shape[-1])
            mask_IL = torch.arange(most, device="cpu") < counts_I.unsqueeze(1)
            mask_IL = mask_IL.to(cells_TC.device)
            cells_TC = padded.index_copy(0, places_T.to(cells_TC.device), cells_TC)
        query_IC = self.class_embedding.to(cells_TC.dtype).expand(images, -1)
        classes: Tensor = self.global_attention(query_IC, cells_TC.view(images, most, -1), mask_IL)
        return classes


class PatchEmbeddingEncoder(Encoder):
    """EVE's eyes."""

    tower: PatchEmbeddingLayer

    def __init__(
        self,
        spec: EncoderSpec,
        architecture: PatchEmbeddingArchitecture,
        grid: int,
        normalization: Normalization,
    ) -> None:
        super().__init__(spec, grid, normalization)
        self.pieces = architecture.pieces
        self.tower = PatchEmbeddingLayer(
            spec.width, architecture.patch, architecture.pooling, architecture.heads
        )

    def native(self, pixels: Tensor) -> Tensor:
        """Return the cells of whole canvases (B, C, G, G)."""
        cells_TC = self.tower.cells(pixels.to(self.dtype))
        side = self.spec.native_grid
        return cells_TC.view(len(pixels), side, side, -1).permute(0, 3, 1, 2)

    def tokens(self, images: Tensor, rectangles: Rectangles) -> Tensor:
        """Return class vector, cells and row ends (I, V, C), zeros behind the shorter ones.

        Args:
            images: canvases (I, 3, S, S), uint8 or 0..1.
            rectangles: where the pictures lie, in cells of the native grid.
        """
        pixels_I3PP = self.preprocess(images).to(self.dtype)
        tokens_IVC: Tensor = self.tower(pixels_I3PP, rectangles, self.pieces)
        return tokens_IVC
