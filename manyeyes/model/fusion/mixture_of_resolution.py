"""Mixture-of-resolution adaptation, LLaVA-HR's fusion (arXiv:2403.03003, section 3.2).

A fast expert (CLIP at low resolution) gives the tokens. Before some of its blocks an adapter mixes
in the map of a slow expert (a convolutional network at high resolution), which runs first:

    slow' = Conv(GELU(Conv(slow)))          brought to the fast grid
    fast' = fast + Conv(GELU(depthwise Conv 7 x 7 (fast)))
    fast  = fast' + tanh(MLP(mean of [fast', slow'])) * slow'

The last convolution of both branches starts at zero, so that training starts from CLIP as it was.
At the end the slow map is added once more, through one linear map each.

Shapes: I images, C fast channels, E slow channels, G side of the fast grid, N = G * G.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.errors import UserError
from manyeyes.model.fusion.base import (
    Eyes,
    Fusion,
    is_trainable,
    look,
    tokens_of,
    two_experts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from manyeyes.config.recipe.fusions import MixtureOfResolution
    from manyeyes.model.encoders import Encoder

GATE_WIDTH = 512


class Adapter(nn.Module):
    """Mixes the slow map into the fast tokens, as much as a gate says for each image."""

    def __init__(self, width: int, slow_width: int) -> None:
        super().__init__()
        self.slow = nn.Sequential(
            nn.Conv2d(slow_width, slow_width, 1), nn.GELU(), nn.Conv2d(slow_width, width, 1)
        )
        self.fast = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
        )
        self.gate = nn.Sequential(
            nn.Linear(2 * width, GATE_WIDTH), nn.GELU(), nn.Linear(GATE_WIDTH, 1)
        )
        for branch in (self.slow, self.fast):
            first, last = branch[0], branch[2]
            assert isinstance(first, nn.Conv2d)
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            nn.init.xavier_uniform_(first.weight)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, fast_INC: Tensor, slow_IEHH: Tensor) -> Tensor:
        """Return the fast tokens (I, N, C) with the slow map mixed in."""
        images, num_tokens, width = fast_INC.shape
        side = int(num_tokens**0.5)
        square_ICGG = fast_INC.transpose(1, 2).reshape(images, width, side, side)
        fast_ICGG = square_ICGG + self.fast(square_ICGG)
        slow_ICGG = to_side(self.slow(slow_IEHH.to(fast_INC.dtype)), side)
        both_IC = torch.cat([fast_ICGG.mean(dim=(2, 3)), slow_ICGG.mean(dim=(2, 3))], dim=1)
        share_I111 = torch.tanh(self.gate(both_IC))[..., None, None]
        return tokens_of(fast_ICGG + share_I111 * slow_ICGG)


class MixtureOfResolutionFusion(Fusion):
    """A fast expert into whose blocks a slow one is mixed."""

    def __init__(self, section: MixtureOfResolution, eyes: Eyes) -> None:
        super().__init__()
        roles = {"fast": section.fast, "slow": section.slow}
        fast, slow = two_experts(section.kind, roles, eyes)
        if eyes.families[fast] != "clip":
            raise UserError(
                f"Fusion mixture_of_resolution works inside the blocks of a CLIP; {section.fast} "
                f"is of the family {eyes.families[fast]}."
            )
        self.fast, self.slow = section.fast, section.slow
        self.before_blocks = section.before_blocks
        self.grid = eyes.grids[fast]
        width, slow_width = eyes.widths[fast], eyes.widths[slow]
        self.adapters = nn.ModuleList(Adapter(width, slow_width) for _ in self.before_blocks)
        self.from_fast = nn.Linear(width, width)
        self.from_slow = nn.Linear(slow_width, width)
        self.group_widths = (width,)
        self.num_tokens = self.grid**2

    def see(
        self,
        experts: Mapping[str, Encoder],
        pixels: Tensor,
        image_sizes: Tensor | None = None,  # noqa: ARG002  (its canvases are whole)
    ) -> list[Tensor]:
        """Return the fast map with the slow one mixed in (I, C, G, G), and the slow map."""
        slow_IEHH = look(experts[self.slow], pixels)
        fast = experts[self.fast]
        learns = is_trainable(self) or is_trainable(fast)
        learning = torch.set_grad_enabled(torch.is_grad_enabled() and learns)
        with learning, self._mixing(fast, slow_IEHH):
            fast_ICGG: Tensor = fast(pixels)
        return [fast_ICGG, slow_IEHH]

    def forward(self, maps_ICHW: Sequence[Tensor]) -> list[Tensor]:
        """Add the two maps of ``see`` to one group (I, N, C)."""
        fast_ICGG, slow_IEHH = maps_ICHW
        dtype = self.from_fast.weight.dtype
        slow_INE = tokens_of(to_side(slow_IEHH, self.grid)).to(dtype)
        return [self.from_fast(tokens_of(fast_ICGG).to(dtype)) + self.from_slow(slow_INE)]

    @contextmanager
    def _mixing(self, fast: Encoder, slow_IEHH: Tensor) -> Iterator[None]:
        """Put the adapters in front of the chosen blocks while the fast expert runs."""
        blocks = fast.tower.get_submodule("encoder.layers")
        assert isinstance(blocks, nn.ModuleList)
        beyond = [index for index in self.before_blocks if index >= len(blocks)]
        if beyond:
            raise UserError(
                f"model.fusion.before_blocks names block {beyond[0]}, but {self.fast} has blocks "
                f"0 to {len(blocks) - 1}."
            )

        def before(adapter: nn.Module) -> Callable[..., Any]:
            def hook(_block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
                return (adapter(inputs[0], slow_IEHH), *inputs[1:])

            return hook

        handles = [
            blocks[index].register_forward_pre_hook(before(adapter))
            for index, adapter in zip(self.before_blocks, self.adapters, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def to_side(map_ICHW: Tensor, side: int) -> Tensor:
    """Bring a map to a grid: enlarged bilinearly, made smaller by averages of whole cells."""
    height = map_ICHW.shape[-1]
    if height == side:
        return map_ICHW
    if height % side == 0:
        return functional.avg_pool2d(map_ICHW, height // side)
    resized = functional.interpolate(
        map_ICHW.float(), size=(side, side), mode="bilinear", align_corners=True
    )
    return resized.to(map_ICHW.dtype)
