"""Fusion: several experts' feature grids become one.

Today one mechanism, Eagle's: maps side by side along the channel axis (arXiv:2408.15998, section
3). It has no parameters; the projector behind it does the mixing. The order of channels is the
order of experts in the recipe. A new mechanism is a section class in the recipe, a class here and
one ``match`` arm; mypy reports the arm that is missing.

Shapes: B images, C channels, H = W common grid.
"""

# ruff: noqa: N803  (a tensor's name ends in its shape)

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import torch
from torch import Tensor, nn

from manyeyes.recipe import ChannelConcat

if TYPE_CHECKING:
    from collections.abc import Sequence

FusionSection = ChannelConcat


class ChannelConcatFusion(nn.Module):
    """Concatenate along channels: the width of the result is the sum of the widths."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.width = sum(widths)

    def forward(self, features_BCHW: Sequence[Tensor]) -> Tensor:
        """Map maps (B, C_i, H, W), in the recipe's order, to (B, sum of C_i, H, W)."""
        return torch.cat(list(features_BCHW), dim=1)


def build_fusion(section: FusionSection, widths: Sequence[int]) -> ChannelConcatFusion:
    """Build the fusion for experts of the given widths."""
    match section:
        case ChannelConcat():
            return ChannelConcatFusion(widths)
        case _:
            assert_never(section)
