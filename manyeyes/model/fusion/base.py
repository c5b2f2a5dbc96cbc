"""The contract of every fusion: which features it asks for, and which tokens it makes of them.

An image passes a fusion three times: ``see`` runs the experts (most fusions take each expert's
map as it is; one may let an expert look into another's blocks), ``forward`` turns maps into groups
of tokens for the projector, and ``arrange`` may add what stands between projected tokens, such as
the ends of rows. A fusion that goes on inside the language model does so in ``inside``.

Shapes: I images, C channels, H = W grid of a map, V visual tokens, D width of the language model.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyeyes.errors import UserError, unknown
from manyeyes.model.processor import Processor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from manyeyes.model.encoders import Encoder
    from manyeyes.model.encoders.spec import EncoderSpec
    from manyeyes.model.splice import Spliced


@dataclass(frozen=True)
class Eyes:
    """What a fusion knows when it is built: the experts, in channel order, and the other end."""

    names: tuple[str, ...]
    families: tuple[str, ...]
    widths: tuple[int, ...]
    """Channels of each expert's map."""
    grids: tuple[int, ...]
    """Side of each expert's map."""
    grid: int
    """Side of the common grid."""
    language_width: int
    language_layers: int
    specs: tuple[EncoderSpec, ...] = ()
    """Each expert's row of the table, for a fusion that works with one family alone."""


class Fusion(nn.Module):
    """Makes visual tokens of the experts' maps."""

    group_widths: tuple[int, ...]
    """Channels of each group of tokens that ``forward`` returns."""
    num_tokens: int
    """Visual tokens of one image, after ``arrange``; the most where images differ."""

    def see(
        self,
        experts: Mapping[str, Encoder],
        pixels: Tensor,
        image_sizes: Tensor | None = None,  # noqa: ARG002  (for fusions that look at the shape)
    ) -> list[Tensor]:
        """Run the experts on canvases (I, 3, S, S); return their maps (I, C_i, H_i, H_i).

        Args:
            experts: by name, in channel order.
            pixels: the canvases.
            image_sizes: (I, 2) widths and heights of the pictures on them; None for squares.
        """
        return [look(expert, pixels) for expert in experts.values()]

    def forward(self, maps_ICHW: Sequence[Tensor]) -> list[Tensor]:
        """Turn the experts' maps, in the recipe's order, into groups of tokens (I, V_j, C_j)."""
        raise AssertionError(f"{type(self).__name__} does not fuse {len(maps_ICHW)} maps")

    def arrange(self, visual_IVD: Tensor) -> Tensor:
        """Return projected tokens as the language model gets them."""
        return visual_IVD

    def token_counts(self, image_sizes: Tensor | None) -> Tensor | None:  # noqa: ARG002
        """Return the visual tokens of every picture, (I,) on the CPU; None where all have V."""
        return None

    def picture_tokens(self, width: int, height: int) -> int:  # noqa: ARG002
        """Return the visual tokens of a picture of a size in pixels."""
        return self.num_tokens

    def processor(self, canvas_size: int) -> Processor:
        """Return what makes canvases of pictures; ``canvas_size`` is the side the data asks for."""
        return Processor(canvas_size=canvas_size)

    def inside(
        self,
        decoder: nn.Module,  # noqa: ARG002  (for fusions that go on in there)
        spliced: Spliced,  # noqa: ARG002
        maps_ICHW: Sequence[Tensor],  # noqa: ARG002
        idle_ICHW: Sequence[Tensor] = (),  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """Surround the language model's pass over a spliced batch (never its decoding steps).

        Args:
            decoder: the language model without its head.
            spliced: the batch.
            maps_ICHW: the maps of its images; empty for text alone.
            idle_ICHW: maps that stand in for them where text alone must still pass every module,
                at the same places of the language model, and change nothing.
        """
        return nullcontext()

    def rehearse(self, maps_ICHW: Sequence[Tensor]) -> list[Tensor]:  # noqa: ARG002
        """Do for the images what ``inside`` adds to the language model: for counting only."""
        return []


def two_experts(kind: str, roles: Mapping[str, str], eyes: Eyes) -> tuple[int, int]:
    """Return where the two experts of a fusion stand that joins exactly two.

    Args:
        kind: the fusion's.
        roles: key of its section to the name of an encoder, in the order of the result.
        eyes: the mixture's experts.

    Raises:
        UserError: no such expert, the same one twice, or there are more.
    """
    for role, name in roles.items():
        if name not in eyes.names:
            raise unknown(f"encoder as model.fusion.{role}", name, eyes.names)
    first, second = (eyes.names.index(name) for name in roles.values())
    if len(eyes.names) != 2 or first == second:
        one, other = roles
        raise UserError(
            f"Fusion {kind} joins two encoders, one as {one} and one as {other}; "
            f"model.encoders has {', '.join(eyes.names)}."
        )
    return first, second


def look(expert: Encoder, pixels: Tensor) -> Tensor:
    """Run one expert; without a trainable parameter it runs without autograd."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and is_trainable(expert)):
        features_ICHW: Tensor = expert(pixels)
    return features_ICHW


def is_trainable(module: nn.Module) -> bool:
    """Whether any parameter of the module requires a gradient.

    Asked several times in every step, and a frozen module is walked to its end. ``parameters()``
    makes up every name on the way, which took a twentieth of a small model's step.
    """
    waiting = [module]
    while waiting:
        current = waiting.pop()
        own = current._parameters.values()
        if any(parameter is not None and parameter.requires_grad for parameter in own):
            return True
        waiting += [child for child in current._modules.values() if child is not None]
    return False


def tokens_of(map_ICHW: Tensor) -> Tensor:
    """Return a map's cells as tokens, row by row: (I, H * W, C)."""
    return map_ICHW.flatten(2).transpose(1, 2)
