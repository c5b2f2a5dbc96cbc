"""The last decoder layer, computed where something is learned.

A position's output of the last layer is read by its own loss and by nothing else, as no layer
comes after it in which others could look at it. So at positions that are not learned (pictures,
questions) only keys and values are needed of that layer; its queries, what attention's output is
multiplied with, and its feed-forward network are left out. Of a layer of a Llama that is five
sixths of the work, of a model of L layers 1/L of that: a fifth of the forward and backward pass of
a tiny language model, a fortieth of a 7B. Losses and gradients are those of the whole layer.

It is done with hooks around three submodules, so that every class of language model goes through
its own code: their inputs are gathered, and zeros stand where nothing was computed. Attention
itself runs on all positions, because its kernels want whole documents.

A mixture of experts is left alone: its router's loss counts every position.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

SINGLE_POSITION = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
"""Parts of a decoder layer that work on one position at a time and whose output only that position
needs; a class of language model may lack some (Phi-3 has one matrix for query, key and value)."""


@contextmanager
def last_layer_at(decoder: nn.Module, places_K: Tensor | None) -> Iterator[None]:
    """Compute the last layer at some positions; elsewhere its output means nothing.

    Args:
        decoder: of a language model.
        places_K: positions that are read, in the flattened batch (B * M), on the model's device;
            None for all.
    """
    if places_K is None:
        yield
        return
    with ExitStack() as hooks:
        for part in single_position_parts(decoder):
            narrowing = _Narrowing(places_K)
            hooks.callback(part.register_forward_pre_hook(narrowing.gather).remove)
            hooks.callback(part.register_forward_hook(narrowing.scatter).remove)
        yield


def single_position_parts(decoder: nn.Module) -> list[nn.Module]:
    """Return the parts of the last layer that are left out where nothing is learned."""
    layers = cast("nn.ModuleList", decoder.layers)
    if len(layers) == 0 or getattr(decoder.config, "num_local_experts", None):
        return []
    parts = dict(layers[-1].named_modules())
    return [parts[name] for name in SINGLE_POSITION if name in parts]


class _Narrowing:
    """The hooks in front of a part and behind it."""

    def __init__(self, places_K: Tensor) -> None:
        self.places_K = places_K
        self.shape = torch.Size()

    def gather(self, _part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Take the rows (1, K, D) out of the batch (B, M, D)."""
        (whole_BMD,) = inputs
        self.shape = whole_BMD.shape[:-1]
        return (whole_BMD.flatten(0, -2).index_select(0, self.places_K).unsqueeze(0),)

    def scatter(self, _part: nn.Module, _inputs: object, output_1KD: Tensor) -> Tensor:
        """Put the rows (1, K, D) back among zeros (B, M, D)."""
        num_rows, width = self.shape.numel(), output_1KD.shape[-1]
        whole = output_1KD.new_zeros(num_rows, width)
        filled = whole.index_copy(0, self.places_K, output_1KD.squeeze(0))
        return filled.view(*self.shape, width)
