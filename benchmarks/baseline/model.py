"""The forward pass of LLaVA's trainer around the product's own towers, projector and LLM.

What it does as the seed systems do: a Python loop over rows that finds the placeholders, cuts the
ids there and joins the pieces; padding to the longest row; a mask handed to the language model; the
language model's own loss, which makes logits of every position and casts them to float32; the
language model in training mode where it is frozen, too, without which it would not recompute.

What it does not do: anything slow that the seed systems do by mistake elsewhere (a second pass of
the tokenizer, Pix2Struct's way over the CPU). Frozen towers run without autograd, as in LLaVA.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN
from manyeyes.model.fusion.base import is_trainable
from manyeyes.model.transformer import decoder_of, head_of

if TYPE_CHECKING:
    from benchmarks.baseline.method import Method
    from manyeyes.model.encoders import Encoder
    from manyeyes.model.vlm import VisionLanguageModel


class PaddedModel(nn.Module):
    """A vision-language model trained LLaVA's way; its parameters are those of ``model``."""

    def __init__(self, model: VisionLanguageModel, method: Method) -> None:
        super().__init__()
        self.model = model
        self.method = method
        model.llm.config.use_cache = False
        if method.recompute:
            model.llm.activation_checkpointing_enable({"use_reentrant": False})

    def train(self, mode: bool = True) -> PaddedModel:
        """Set the mode as Trainer does: the language model's too, frozen or not."""
        super().train(mode)
        nn.Module.train(self.model.llm, mode)
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, images: Tensor | None
    ) -> dict[str, Tensor]:
        """Return ``{"loss": mean over the batch's learned positions}``.

        Args:
            input_ids: (B, N), ``IMAGE_TOKEN`` at pictures, right-padded.
            attention_mask: (B, N) bool.
            labels: (B, N).
            images: (I, 3, S, S) float32 in 0..1; with ``blank_pictures`` each row without a
                picture has one here. None for none.
        """
        visual_IVD = self.see(images)
        rows = self.rows(input_ids, attention_mask, labels, visual_IVD)
        padded: dict[str, Any] = pad_rows(rows)
        labels_BM = padded.pop("labels")
        if self.method.full_head:
            return {"loss": self.model.llm(**padded, labels=labels_BM).loss}
        hidden_BMD = decoder_of(self.model.llm)(**padded).last_hidden_state
        targets_BM = labels_BM[:, 1:]
        learned_BM = targets_BM != IGNORED
        logits_KV = head_of(self.model.llm)(hidden_BMD[:, :-1][learned_BM]).float()
        return {"loss": functional.cross_entropy(logits_KV, targets_BM[learned_BM])}

    def see(self, images: Tensor | None) -> Tensor | None:
        """Return visual tokens (I, V, D)."""
        if images is None:
            return None
        maps_ICHW = [self._look(expert, images) for expert in self.model.experts.values()]
        return self.model.project(maps_ICHW)

    def _look(self, expert: Encoder, images: Tensor) -> Tensor:
        trains = is_trainable(expert)
        with torch.set_grad_enabled(trains):
            if trains and self.method.recompute:
                found = checkpoint(expert, images, use_reentrant=False)
                assert isinstance(found, Tensor)
                return found
            features_ICHW: Tensor = expert(images)
        return features_ICHW

    def rows(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, visual_IVD: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return per row its embeddings (M_i, D) and labels (M_i), pictures put in."""
        return splice_rows(
            input_ids,
            attention_mask,
            labels,
            visual_IVD,
            self.model.get_input_embeddings(),
            blank_pictures=self.method.blank_pictures,
        )


def splice_rows(
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    visual_IVD: Tensor | None,
    embed: nn.Module,
    *,
    blank_pictures: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Put the pictures into each row, one row after another, as LLaVA does.

    Args:
        input_ids: (B, N), ``IMAGE_TOKEN`` at pictures.
        attention_mask: (B, N) bool.
        labels: (B, N).
        visual_IVD: visual tokens in reading order; None for no picture.
        embed: the embedding table.
        blank_pictures: a row without a placeholder has a picture nonetheless, of which nothing is
            used but its place in the graph.

    Returns:
        Per row its embeddings (M_i, D) and labels (M_i).
    """
    rows = []
    used = 0
    for row_ids, row_mask, row_labels in zip(input_ids, attention_mask, labels, strict=True):
        ids_N, labels_N = row_ids[row_mask], row_labels[row_mask]
        if int((ids_N == IMAGE_TOKEN).sum()) == 0:
            embedded = embed(ids_N)
            if blank_pictures and visual_IVD is not None:
                embedded = torch.cat([embedded, visual_IVD[used][0:0].to(embedded.dtype)])
                used += 1
            rows.append((embedded, labels_N))
            continue
        cuts = [-1, *torch.where(ids_N == IMAGE_TOKEN)[0].tolist(), len(ids_N)]
        spans = [slice(a + 1, b) for a, b in pairwise(cuts)]
        texts = [ids_N[span] for span in spans]
        embedded_texts = embed(torch.cat(texts)).split([len(text) for text in texts])
        pieces, piece_labels = [], []
        for number, span in enumerate(spans):
            pieces.append(embedded_texts[number])
            piece_labels.append(labels_N[span])
            if number < len(spans) - 1:
                assert visual_IVD is not None
                visual_VD = visual_IVD[used].to(embedded_texts[number].dtype)
                used += 1
                pieces.append(visual_VD)
                piece_labels.append(torch.full_like(labels_N[:1], IGNORED).expand(len(visual_VD)))
        rows.append((torch.cat(pieces), torch.cat(piece_labels)))
    return rows


def pad_rows(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Stack rows, padded on the right to the longest; the arguments of the language model."""
    longest = max(len(labels) for _, labels in rows)
    embeddings, labels, mask, positions = [], [], [], []
    for row_MD, labels_M in rows:
        missing = longest - len(labels_M)
        embeddings.append(functional.pad(row_MD, (0, 0, 0, missing)))
        labels.append(functional.pad(labels_M, (0, missing), value=IGNORED))
        index_M = torch.arange(longest, device=labels_M.device)
        mask.append(index_M < len(labels_M))
        positions.append(torch.where(index_M < len(labels_M), index_M, 0))
    return {
        "inputs_embeds": torch.stack(embeddings),
        "labels": torch.stack(labels),
        "attention_mask": torch.stack(mask),
        "position_ids": torch.stack(positions),
    }
