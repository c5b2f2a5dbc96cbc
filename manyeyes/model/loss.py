"""The loss, computed where there is one: the head sees supervised positions only, in pieces.

Hidden states are gathered *before* the head: at a vocabulary of 128,000 the logits of positions
that are not learned would be most of a step's memory. What is left is cut where its logits would
take more than ``LOGIT_BYTES``; each piece's logits are dropped and computed again in the backward
pass, so that no more than one piece exists at a time. One piece alone is kept: nothing is done
twice.
"""

# ruff: noqa: N803, N806, N815  (a tensor's name ends in its shape)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import ModelOutput

from manyeyes.data.loading.conversation import IGNORED

if TYPE_CHECKING:
    from torch import Tensor, nn

LOGIT_BYTES = 256 * 1024 * 1024
"""Most that the float32 logits of one piece take."""


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


@dataclass(frozen=True)
class Learned:
    """The positions that are learned, K of a batch's B * M; position t predicts the label at t + 1.

    All on the model's device. Found where the labels are: an accelerator that is asked for their
    number is waited for.
    """

    places_K: Tensor
    """In the flattened batch."""
    targets_K: Tensor
    """The label of the position behind each."""

    @classmethod
    def of(cls, labels_BM: Tensor, device: torch.device) -> Learned:
        """Find them in labels, -100 where nothing is learned, which may be on the CPU."""
        targets_BM = labels_BM[:, 1:]
        supervised_BM = targets_BM != IGNORED
        row_K, place_K = supervised_BM.nonzero(as_tuple=True)
        places_K = row_K * labels_BM.shape[1] + place_K
        return cls(places_K.to(device), targets_BM[supervised_BM].to(device))


def supervised_loss(
    hidden_BMD: Tensor,
    learned: Learned,
    head: nn.Module,
    vocabulary: int,
    limit: int = LOGIT_BYTES,
) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy, with the head applied to supervised positions only.

    Args:
        hidden_BMD: the decoder's output, on the model's device.
        learned: which positions are read, and what they predict.
        head: D to ``vocabulary``.
        vocabulary: numbers that the head returns for a position.
        limit: bytes of logits (float32) that may exist at once; at least one position is done.

    Returns:
        (mean loss in float32, number of supervised positions); the loss is 0 when there are none.
    """
    targets_K = learned.targets_K
    hidden_KD = hidden_BMD.flatten(0, 1).index_select(0, learned.places_K)
    size = max(1, limit // (4 * vocabulary))
    cut = zip(torch.split(hidden_KD, size), torch.split(targets_K, size), strict=True)
    if len(targets_K) <= size or not torch.is_grad_enabled():
        sums = [loss_of(head, hidden, targets) for hidden, targets in cut]
    else:
        sums = [
            cast("Tensor", checkpoint(loss_of, head, hidden, targets, use_reentrant=False))
            for hidden, targets in cut
        ]
    num_supervised = torch.tensor(len(targets_K), device=targets_K.device)
    return torch.stack(sums).sum() / num_supervised.clamp_min(1), num_supervised


def loss_of(head: nn.Module, hidden_KD: Tensor, targets_K: Tensor) -> Tensor:
    """Return the summed loss of some positions, float32."""
    logits_KV = head(hidden_KD).float()
    return functional.cross_entropy(logits_KV, targets_K, reduction="sum")
