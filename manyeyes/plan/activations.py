"""What a step holds beside weights and optimizer state, followed on the meta device.

Forward and backward of the whole path are run without memory behind them, and a ledger notes after
each operation what is alive: kept tensors, temporary ones, and the gradients that have been made so
far. The highest of the sums is what a device must hold: not kept tensors plus gradients, because
the former go as the latter come.

A step is followed with two samples and two learned positions, then with three samples, then with
three positions. The same operations run in all three, so every moment's bytes are a fixed part, a
part per sample and a part per position, and any batch's peak follows.

Attention is the exception: on the meta device torch would take the path that writes the square of
scores, which no GPU does. A stand-in keeps what flash kernels keep: queries, keys, values, output,
one number per row, and a bias that learns.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.plan.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Bytes = npt.NDArray[np.int64]

ATTENTION = "planned"
"""Name of the stand-in in transformers' registry; in that of masks it is not, so there is none."""


@dataclass(frozen=True, eq=False)
class Course:
    """Bytes alive after each operation of a step, as functions of what the step consists of."""

    fixed: Bytes
    """Whatever the batch: gradients on their way, copies of weights."""
    per_sample: Bytes
    per_position: Bytes
    """Per learned position."""
    gradients: Bytes
    """Made so far."""

    def peak(self, samples: int, positions: int, *, before: bool) -> int:
        """Return the highest sum.

        Args:
            samples: of the micro-batch.
            positions: whose logits exist at once.
            before: gradients of earlier micro-batches are there already, so they are not counted.
        """
        alive = self.fixed + samples * self.per_sample + positions * self.per_position
        return int((alive if before else alive + self.gradients).max(initial=0))

    @classmethod
    def flat(cls, fixed: int, per_sample: int = 0) -> Course:
        """Return a course of one moment without logits or gradients."""
        numbers = (np.array([value], dtype=np.int64) for value in (fixed, per_sample, 0, 0))
        return cls(*numbers)


def follow(root: nn.Module, run: Callable[[int, int], Tensor]) -> Course:
    """Follow a step.

    Args:
        root: whose gradients are told apart; left without any.
        run: does the forward pass of so many samples and learned positions; returns the loss.
    """
    with torch.no_grad(), _flash_stands_in():
        run(1, 1)  # what is made once (constants, tables of positions) is not of a step
    # From two on: with an axis of length one some copies are views.
    few, more_samples, more_positions = (
        _moments(root, run, *counts) for counts in ((2, 2), (3, 2), (2, 3))
    )
    assert len(few) == len(more_samples) == len(more_positions), "a step's operations are the same"
    per_sample = more_samples[:, 0] - few[:, 0]
    per_position = more_positions[:, 0] - few[:, 0]
    fixed = few[:, 0] - 2 * (per_sample + per_position)
    return Course(fixed, per_sample, per_position, few[:, 1])


def _moments(root: nn.Module, run: Callable[[int, int], Tensor], *counts: int) -> Bytes:
    """Run a step under a ledger; return (moments, 2): alive bytes without and of gradients."""
    ledger = Ledger()
    hooks = [
        parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]  # torch's
            lambda p: ledger.is_gradient(p.grad)
        )
        for parameter in root.parameters()
        if parameter.requires_grad
    ]
    try:
        with torch.enable_grad(), _flash_stands_in(), ledger:
            run(*counts).backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in root.parameters():
            parameter.grad = None
    return np.array(ledger.moments, dtype=np.int64).reshape(-1, 2)


@contextmanager
def standing_in(llm: Any) -> Iterator[None]:  # noqa: ANN401  (transformers' PreTrainedModel)
    """Let a language model attend by the stand-in, and without the mask, for a while."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)
    before = llm.config._attn_implementation
    try:
        llm.set_attn_implementation(ATTENTION)
        yield
    finally:
        llm.set_attn_implementation(before)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: object,
) -> tuple[Tensor, None]:
    """Stand in for transformers' attention functions: heads come back behind positions."""
    del module, attention_mask, options
    stand_in: Callable[..., Tensor] = _Flash.apply
    return stand_in(query, key, value, None).transpose(1, 2).contiguous(), None


class _Flash(torch.autograd.Function):
    """Keeps what a flash kernel keeps."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (torch's)
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        # As contiguous behind the exchange of heads and positions, as kernels write it.
        output = query.new_empty(*query.transpose(1, 2).shape[:-1], value.shape[-1])
        output = output.transpose(1, 2)
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, output, rows)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401, ARG004  (torch's)
        query, key, value, bias, _, _ = ctx.saved_tensors
        learns = bias is not None and ctx.needs_input_grad[3]
        made = (torch.empty_like(each) for each in (query, key, value))
        return (*made, torch.empty_like(bias) if learns else None)


@contextmanager
def _flash_stands_in() -> Iterator[None]:
    """Replace scaled dot product attention for a while.

    The function itself and not by a ``TorchFunctionMode``: recomputation calls it from the backward
    pass, where such modes are off.
    """
    before = functional.scaled_dot_product_attention
    try:
        functional.scaled_dot_product_attention = _from_names
        yield
    finally:
        functional.scaled_dot_product_attention = before


def _from_names(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *_: object,
    **__: object,
) -> Any:  # noqa: ANN401  (what torch's Function returns)
    learns = attn_mask is not None and attn_mask.requires_grad
    stand_in: Callable[..., Tensor] = _Flash.apply
    return stand_in(query, key, value, attn_mask if learns else None)
