"""The loss, computed where there is one: the head sees supervised positions only."""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional
from transformers.utils.generic import ModelOutput

from manyeyes.data.conversation import IGNORED

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class VisionLanguageOutput(ModelOutput):
    """What ``forward`` returns; unset fields are None."""

    loss: Tensor | None = None
    """Mean cross-entropy over supervised positions, float32 scalar."""
    num_supervised: Tensor | None = None
    """How many positions the mean is over (to average right over micro-batches)."""
    alignment_loss: Tensor | None = None
    """1 - mean cosine to the teacher, not weighted, float32 scalar; over the batch's pictures."""
    logits: Tensor | None = None
    """(B, M, vocabulary), only when no labels were given."""
    visual_mask: Tensor | None = None
    """(B, M) bool: where visual tokens stand."""
    attention_mask: Tensor | None = None
    """(B, M) bool: where there are tokens."""


def supervised_loss(
    hidden_BMD: Tensor, labels_BM: Tensor, head: nn.Module
) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy, with the head applied to supervised positions only.

    Position t predicts the label at t + 1. Hidden states are gathered *before* the head: at a
    vocabulary of 128,000 the logits of masked positions would be most of the step's memory.

    Returns:
        (mean loss in float32, number of supervised positions); the loss is 0 when there are none.
    """
    targets_BM = labels_BM[:, 1:]
    supervised_BM = targets_BM != IGNORED
    logits_KV = head(hidden_BMD[:, :-1][supervised_BM]).float()
    total = functional.cross_entropy(logits_KV, targets_BM[supervised_BM], reduction="sum")
    num_supervised = supervised_BM.sum()
    return total / num_supervised.clamp_min(1), num_supervised
