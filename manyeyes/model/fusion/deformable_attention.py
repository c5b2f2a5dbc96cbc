"""Deformable attention, a baseline that Eagle's ablation names (arXiv:2408.15998, table 3).

No code of it is public. Here the first expert's cells ask all experts' maps at a few learned places
each, by multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, equation 3): every
expert is one level, the reference point is the cell's centre, offsets and weights are linear in the
query. The result is added to the query. Sampling is done in float32, since a place in a half
precision number would be off by cells.

Shapes: I images, Q query cells, C channels, L levels (experts), M heads, P points a head and level.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.errors import UserError
from manyeyes.model.fusion.base import Eyes, Fusion, tokens_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyeyes.config.recipe.fusions import DeformableAttention


class DeformableAttentionFusion(Fusion):
    """The first expert's tokens gather from all experts' maps."""

    def __init__(self, section: DeformableAttention, eyes: Eyes) -> None:
        super().__init__()
        width = eyes.widths[0]
        if width % section.heads:
            raise UserError(
                f"model.fusion.heads is {section.heads}, which does not divide the {width} "
                f"channels of {eyes.names[0]}."
            )
        self.heads, self.points, self.levels = section.heads, section.points, len(eyes.names)
        self.grid = eyes.grids[0]
        self.into = nn.ModuleList(nn.Conv2d(each, width, 1) for each in eyes.widths)
        self.norm = nn.LayerNorm(width)
        places = self.heads * self.levels * self.points
        self.offset = nn.Linear(width, places * 2)
        self.weight = nn.Linear(width, places)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self._start()
        self.group_widths = (width,)
        self.num_tokens = self.grid**2

    def _start(self) -> None:
        """Begin with equal weights and, per head, points on a ray in a direction of its own."""
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)
        angles_M = torch.arange(self.heads) * (2.0 * math.pi / self.heads)
        rays_M2 = torch.stack([angles_M.cos(), angles_M.sin()], dim=-1)
        rays_M2 = rays_M2 / rays_M2.abs().amax(dim=-1, keepdim=True)
        steps_P = torch.arange(1, self.points + 1)
        bias = rays_M2[:, None, None] * steps_P[:, None]  # (M, 1, P, 2)
        bias = bias.expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.offset.bias.copy_(bias.reshape(-1))

    def forward(self, maps_ICHW: Sequence[Tensor]) -> list[Tensor]:
        """Map the experts' maps to one group (I, Q, C)."""
        dtype = self.out.weight.dtype
        base_IQC = tokens_of(maps_ICHW[0]).to(dtype)
        query_IQC = self.norm(base_IQC)
        shape = (*query_IQC.shape[:2], self.heads, self.levels, self.points)
        offsets = self.offset(query_IQC).view(*shape, 2).float()
        weights = self.weight(query_IQC).view(*shape[:3], -1).float().softmax(-1).view(shape)
        reference_Q2 = self._centres(query_IQC.device)
        gathered = torch.zeros_like(query_IQC, dtype=torch.float32)
        for level, (into, map_ICHW) in enumerate(zip(self.into, maps_ICHW, strict=True)):
            values_IHWC = self.value(into(map_ICHW.to(dtype)).permute(0, 2, 3, 1))
            side = map_ICHW.shape[-1]
            places = reference_Q2[None, :, None, None] + offsets[:, :, :, level] / side
            gathered = gathered + self._sample(values_IHWC, places, weights[:, :, :, level])
        return [base_IQC + self.out(gathered.to(dtype))]

    def _centres(self, device: torch.device) -> Tensor:
        """Return the centres of the query cells, (Q, 2) as x, y in 0..1."""
        line_G = (torch.arange(self.grid, device=device) + 0.5) / self.grid
        y_GG, x_GG = torch.meshgrid(line_G, line_G, indexing="ij")
        return torch.stack([x_GG, y_GG], dim=-1).view(-1, 2)

    def _sample(self, values_IHWC: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        """Sum weighted bilinear samples; places (I, Q, M, P, 2), weights (I, Q, M, P)."""
        images, height, width, channels = values_IHWC.shape
        heads = values_IHWC.view(images, height, width, self.heads, -1).permute(0, 3, 4, 1, 2)
        where = (places * 2.0 - 1.0).permute(0, 2, 1, 3, 4).flatten(0, 1)  # (I * M, Q, P, 2)
        found = functional.grid_sample(
            heads.flatten(0, 1).float(), where, mode="bilinear", align_corners=False
        )  # (I * M, C / M, Q, P)
        scaled = found * weights.permute(0, 2, 1, 3).flatten(0, 1).unsqueeze(1)
        return scaled.sum(-1).view(images, channels, -1).transpose(1, 2)
