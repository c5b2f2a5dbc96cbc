"""Sequence append, the simplest baseline of Eagle's ablation (arXiv:2408.15998, table 3).

Each expert's tokens have a projector of their own and stand one expert after the other, so the
sequence grows with the mixture.
"""

# ruff: noqa: N803  (a tensor's name ends in its shape)

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from manyeyes.model.fusion.base import Eyes, Fusion, tokens_of

if TYPE_CHECKING:
    from collections.abc import Sequence


class SequenceAppendFusion(Fusion):
    """One group of tokens per expert."""

    def __init__(self, eyes: Eyes) -> None:
        super().__init__()
        self.group_widths = eyes.widths
        self.num_tokens = sum(grid**2 for grid in eyes.grids)

    def forward(self, maps_ICHW: Sequence[Tensor]) -> list[Tensor]:
        """Map maps (I, C_i, H_i, H_i) to groups (I, H_i * H_i, C_i)."""
        return [tokens_of(map_ICHW) for map_ICHW in maps_ICHW]
