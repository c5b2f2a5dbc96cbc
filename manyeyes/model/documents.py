"""Attention in a packed row: every document attends to itself only.

A packed row is documents end to end, (1, T, D). All of a language model but its attention works on
single positions and runs on the row as it is; attention is called document by document.

Decisions:

- No T x T mask, ever: at 16,384 positions it is a quarter of a gigabyte and makes SDPA leave its
  fast kernels. On a CPU one SDPA call per document takes a fiftieth of the time of one masked call,
  and less than the padded batch of the same documents where their lengths differ; scattering the
  documents into a padded batch inside attention was slower than both.
- It reaches every language model through transformers' own registry of attention functions, under
  one more name, so no class of model is copied or patched. The lengths travel as a keyword from the
  decoder's call to the attention function, so recomputation (gradient checkpointing) sees them too.
- Where the language model runs on flash-attn its kernel for varying lengths gets the same bounds.
- Restarting the position ids alone is not enough: transformers takes documents apart by them only
  with ``use_cache=False`` and no attention mask, and then builds the dense mask; with a cache or
  any mask they silently see each other. ``tests/unit/test_documents.py`` keeps that on record.
- Layers that carry a state along the row (linear attention, state spaces) cannot be told where a
  document ends, so models with such layers are refused.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

IMPLEMENTATION = "documents"
"""Name of our attention in transformers' registry."""
ATTENTION_LAYERS = ("full_attention", "sliding_attention")
"""Kinds of layers whose attention is told the documents."""


def packed_arguments(
    llm: PreTrainedModel, lengths: Sequence[int] | None, device: torch.device
) -> dict[str, Any]:
    """Return what a decoder's call needs for a row of documents; makes the model ready for it.

    Args:
        llm: the language model; from now on its attention is ours or flash-attn's.
        lengths: positions of each document, in order; None for rows that are not packed.
        device: where the row is.

    Raises:
        UserError: documents would see each other in this kind of language model.
    """
    if lengths is None:
        return {}
    implementation = str(llm.config._attn_implementation)
    arguments: dict[str, Any] = {"position_ids": position_ids(lengths, device)}
    if "flash" in implementation:
        ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
        longest = max(lengths)
        bounds = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        return arguments | bounds | {"max_length_q": longest, "max_length_k": longest}
    if implementation != IMPLEMENTATION:
        refuse_unpackable(llm)
        _register()
        llm.set_attn_implementation(IMPLEMENTATION)
    return arguments | {"document_lengths": tuple(lengths)}


def position_ids(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return each position's index in its own document, (1, T)."""
    return torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).to(device)


def refuse_unpackable(llm: PreTrainedModel) -> None:
    """Refuse a language model in which documents of a row would see each other.

    Raises:
        UserError: it has layers that carry a state along the row, or attention of its own.
    """
    config: PreTrainedConfig = llm.config
    kinds = getattr(config, "layer_types", None) or ATTENTION_LAYERS
    other = sorted({str(kind) for kind in kinds} - set(ATTENTION_LAYERS))
    if other or not llm._supports_attention_backend:
        reason = f"its layers of kind {other[0]}" if other else "its attention"
        raise UserError(
            f"batch.packing does not fit language models of kind {config.model_type!r}: through "
            f"{reason} the samples of a pack would see each other. Leave packing out."
        )


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sliding_window: int | None = None,
    document_lengths: Sequence[int] | None = None,
    **options: Any,  # noqa: ANN401  (whatever a model gives its attention function)
) -> tuple[Tensor, None]:
    """Attend causally within each document; without documents, as SDPA does.

    Args:
        module: the attention layer.
        query: (B, heads, T, width of a head); B is 1 for a packed row.
        key: (B, key heads, T', width of a head).
        value: as ``key``.
        attention_mask: what :func:`document_mask` made; None in a packed row.
        sliding_window: farthest that a position looks back, itself included.
        document_lengths: positions of each document; they sum to T.
        options: given to transformers' SDPA.

    Returns:
        (B, T, heads, width of a head), and no weights.
    """
    unmasked = attention_mask is None and query.shape[2] == key.shape[2]
    attend = cast("Callable[..., tuple[Tensor, None]]", sdpa_attention_forward)
    if document_lengths is None:
        if not unmasked or sliding_window is None:
            return attend(module, query, key, value, attention_mask, **options)
        document_lengths = (query.shape[2],)
    assert unmasked, "a packed row has no mask and no cache"
    sizes = list(document_lengths)
    pieces = zip(*(torch.split(whole, sizes, 2) for whole in (query, key, value)), strict=True)
    outputs = [
        attend(module, *piece, _band(size, sliding_window, query.device), **options)[0]
        for size, piece in zip(sizes, pieces, strict=True)
    ]
    return torch.cat(outputs, dim=1), None


def _band(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the mask (1, 1, L, L) of a window that is shorter than the document, else None."""
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=device)
    back = places.unsqueeze(1) - places
    return ((back >= 0) & (back < window)).view(1, 1, length, length)


def document_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    **options: Any,  # noqa: ANN401  (passed on to transformers)
) -> Tensor | None:
    """Return SDPA's mask, but none where all are causal and nothing is padded or cached.

    There :func:`document_attention` needs none: SDPA is causal by itself, and a sliding window is
    drawn per document.
    """
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(
        q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **options
    )


def _register() -> None:
    """Tell transformers of our attention; again is the same as once."""
    AttentionInterface.register(IMPLEMENTATION, document_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, document_mask)
