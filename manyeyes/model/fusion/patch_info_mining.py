"""Patch info mining, Mini-Gemini's fusion (arXiv:2403.18814, section 3.2).

A low-resolution expert says how many tokens there are; each of its cells asks the window of cells
that a high-resolution expert has for the same spot, and adds what it finds:

    q = Linear(LN(low))    k = Linear(LN(high))    v = Linear(LN(high))
    token = low + softmax(q k^T / sqrt(C)) v        over the window of one cell

One head, one layer, no output projection. With ``crops`` > 1 (the HD variant) the low-resolution
expert looks at the whole canvas and at each of crops x crops parts of it; the high-resolution map
is made once and cut the same way. Tokens stand in the order whole, then parts row by row.

Shapes: I images, C low-resolution channels, E high-resolution channels, G grid of the low map,
P side of a window, K crops * crops + 1 views (or 1).
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.errors import UserError
from manyeyes.model.encoders.base import resize_canvas, unit_range
from manyeyes.model.fusion.base import Eyes, Fusion, look, tokens_of, two_experts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from manyeyes.config.recipe.fusions import PatchInfoMining
    from manyeyes.model.encoders import Encoder


class PatchInfoMiningFusion(Fusion):
    """Low-resolution tokens that mine a high-resolution map."""

    def __init__(self, section: PatchInfoMining, eyes: Eyes) -> None:
        super().__init__()
        roles = {"low": section.low, "high": section.high}
        low, high = two_experts(section.kind, roles, eyes)
        self.low, self.high, self.crops = section.low, section.high, section.crops
        self.grid = eyes.grids[low]
        self.window, rest = divmod(eyes.grids[high], self.grid * section.crops)
        if rest or not self.window:
            raise UserError(
                f"The map of {section.high} has {eyes.grids[high]} cells a side, which must be a "
                f"multiple of {self.grid * section.crops} (grid of {section.low} x crops): set its "
                "grid in model.encoders."
            )
        width, high_width = eyes.widths[low], eyes.widths[high]
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.key = nn.Sequential(nn.LayerNorm(high_width), nn.Linear(high_width, width))
        self.value = nn.Sequential(nn.LayerNorm(high_width), nn.Linear(high_width, width))
        self.group_widths = (width,)
        self.num_tokens = self.num_views * self.grid**2

    @property
    def num_views(self) -> int:
        """The whole canvas, and its parts when there are several."""
        return 1 if self.crops == 1 else self.crops**2 + 1

    def see(
        self,
        experts: Mapping[str, Encoder],
        pixels: Tensor,
        image_sizes: Tensor | None = None,  # noqa: ARG002  (its canvases are whole)
    ) -> list[Tensor]:
        """Return the low map of every view (I * K, C, G, G), and the high map (I, E, H, H)."""
        low = experts[self.low]
        views = [pixels]
        if self.crops > 1:
            side = low.spec.image_size
            whole = resize_canvas(unit_range(pixels), side * self.crops, low.spec.resample)
            views += parts_of(whole, side)
        maps_KICGG = torch.stack([look(low, view) for view in views], dim=1)
        return [maps_KICGG.flatten(0, 1), look(experts[self.high], pixels)]

    def forward(self, maps_ICHW: Sequence[Tensor]) -> list[Tensor]:
        """Mine: maps of ``see`` to one group (I, K * G * G, C)."""
        low_JCGG, high_IEHH = maps_ICHW
        dtype = next(self.parameters()).dtype
        low_JNC = tokens_of(low_JCGG).to(dtype)
        windows_JNWE = self._windows(high_IEHH).to(dtype)
        query_JN1C = self.query(low_JNC).unsqueeze(2)
        mined_JN1C = functional.scaled_dot_product_attention(
            query_JN1C, self.key(windows_JNWE), self.value(windows_JNWE)
        )
        tokens_JNC = low_JNC + mined_JN1C.squeeze(2)
        return [tokens_JNC.reshape(high_IEHH.shape[0], self.num_tokens, -1)]

    def _windows(self, high_IEHH: Tensor) -> Tensor:
        """Cut the high map into one window per low cell of every view: (I * K, N, P * P, E)."""
        views = [high_IEHH]
        if self.crops > 1:
            part = high_IEHH.shape[-1] // self.crops
            views = [
                functional.interpolate(
                    high_IEHH.float(), size=(part, part), mode="bilinear", align_corners=False
                ).to(high_IEHH.dtype)
            ]
            views += parts_of(high_IEHH, part)
        maps_JEHH = torch.stack(views, dim=1).flatten(0, 1)
        cuts = (self.grid, self.window, self.grid, self.window)
        windows = maps_JEHH.reshape(*maps_JEHH.shape[:2], *cuts)  # (J, E, G, P, G, P)
        return windows.permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2, 3)


def parts_of(map_ICHW: Tensor, side: int) -> list[Tensor]:
    """Cut a square map into squares of a side, row by row."""
    rows = torch.split(map_ICHW, side, dim=2)
    return [part for row in rows for part in torch.split(row, side, dim=3)]
