"""Projector: from the fused vision width to the language model's width, token by token.

``mlp2x_gelu`` is LLaVA-1.5's (arXiv:2310.03744): Linear, GELU, Linear, with biases, PyTorch's
default initialisation. It is an ``nn.Sequential``, so its keys ``0.*`` and ``2.*`` are those of the
published ``mm_projector`` files.
"""

from __future__ import annotations

from typing import assert_never

from torch import nn

from manyeyes.recipe import MlpProjector

ProjectorSection = MlpProjector


def build_projector(section: ProjectorSection, width_in: int, width_out: int) -> nn.Sequential:
    """Build a projector that maps (..., width_in) to (..., width_out)."""
    match section:
        case MlpProjector():
            return nn.Sequential(
                nn.Linear(width_in, width_out), nn.GELU(), nn.Linear(width_out, width_out)
            )
        case _:
            assert_never(section)
