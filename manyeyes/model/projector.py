"""Projector: from the fused vision width to the language model's width, token by token.

``mlp2x_gelu`` is LLaVA-1.5's (arXiv:2310.03744): Linear, GELU, Linear, with biases, PyTorch's
default initialisation. Its keys ``0.*`` and ``2.*`` are those of the published ``mm_projector``
files. A fusion with several groups of tokens has one such projector per group.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import torch
from torch import Tensor, nn

from manyeyes.config.recipe import MlpProjector

if TYPE_CHECKING:
    from collections.abc import Sequence

ProjectorSection = MlpProjector


class Projector(nn.Sequential):
    """Projects the one group of tokens of a fusion."""

    def forward(self, groups: Sequence[Tensor]) -> Tensor:
        """Map one group (I, V, C) to (I, V, D)."""
        (tokens_IVC,) = groups
        tokens_IVC = tokens_IVC.to(next(self.parameters()).dtype)
        for layer in self:
            tokens_IVC = layer(tokens_IVC)
        return tokens_IVC


class SeparateProjectors(nn.ModuleList):
    """Projects each group of tokens by itself; the results stand one after the other."""

    def forward(self, groups: Sequence[Tensor]) -> Tensor:
        """Map groups (I, V_j, C_j) to (I, sum of V_j, D)."""
        projected = [part([tokens]) for part, tokens in zip(self, groups, strict=True)]
        return torch.cat(projected, dim=1)


def build_projector(
    section: ProjectorSection, widths_in: Sequence[int], width_out: int
) -> Projector | SeparateProjectors:
    """Build a projector for groups of tokens of the given widths."""
    parts = [_build_one(section, width, width_out) for width in widths_in]
    return parts[0] if len(parts) == 1 else SeparateProjectors(parts)


def _build_one(section: ProjectorSection, width_in: int, width_out: int) -> Projector:
    match section:
        case MlpProjector():
            return Projector(
                nn.Linear(width_in, width_out), nn.GELU(), nn.Linear(width_out, width_out)
            )
        case _:
            assert_never(section)
