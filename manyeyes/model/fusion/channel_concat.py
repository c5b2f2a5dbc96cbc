"""Eagle's fusion: maps side by side along the channel axis (arXiv:2408.15998, section 3).

It has no parameters; the projector behind it does the mixing. The order of channels is the order of
experts in the recipe.
"""

# ruff: noqa: N803  (a tensor's name ends in its shape)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyeyes.model.fusion.base import Eyes, Fusion, tokens_of

if TYPE_CHECKING:
    from collections.abc import Sequence


class ChannelConcatFusion(Fusion):
    """Concatenate along channels: the width of the result is the sum of the widths."""

    def __init__(self, eyes: Eyes) -> None:
        super().__init__()
        self.group_widths = (sum(eyes.widths),)
        self.num_tokens = eyes.grid**2

    def forward(self, maps_ICHW: Sequence[Tensor]) -> list[Tensor]:
        """Map maps (I, C_i, H, W) to one group (I, H * W, sum of C_i)."""
        return [tokens_of(torch.cat(list(maps_ICHW), dim=1))]
