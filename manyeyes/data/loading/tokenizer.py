"""Asks a Hugging Face tokenizer for the ids of texts: fast, and from one thread at a time.

A vocabulary that puts a space before every text by itself (the published ones of Llama-2, Vicuna,
Mixtral and Phi-3 do) is not given a second one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from manyeyes.data.loading.control import Controls, Part


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any:  # noqa: ANN401  # transformers' BatchEncoding
        """Tokenise texts; ``["input_ids"]`` of the result is a list of lists."""

    def convert_ids_to_tokens(self, ids: int) -> Any:  # noqa: ANN401  # a str for one id
        """Return the vocabulary's spelling of an id."""


def token_ids(
    tokenizer: Tokenizer, texts: list[str | tuple[Part, ...]], controls: Controls
) -> list[list[int]]:
    """Tokenise distinct texts, none of them empty."""
    with _ONE_AT_A_TIME:
        # A vocabulary that puts a space before every text by itself must not be given a second one.
        own_space = _adds_space(tokenizer)
        plain = [text for text in texts if isinstance(text, str)]
        found = iter(
            _ids([text.removeprefix(" ") for text in plain] if own_space else plain, tokenizer)
        )
        return [
            next(found)
            if isinstance(text, str)
            else controls.encode(tokenizer, text, own_space=own_space)
            for text in texts
        ]


_ONE_AT_A_TIME = threading.Lock()
"""A tokenizer keeps switches between two calls, which another thread would see."""


def _ids(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    if not texts:
        return []
    backend = plain_backend(tokenizer)
    if backend is None:
        found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return found
    return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]


def plain_backend(tokenizer: Any) -> Any:  # noqa: ANN401  # transformers' and tokenizers' types
    """Return what a tokenizer asks itself, where it adds nothing to what it is told.

    Calling the tokenizer gives the same ids, and takes half as long again for things nobody asked
    for.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        return None
    from transformers import PreTrainedTokenizerFast as Fast

    kind, backend = type(tokenizer), tokenizer.backend_tokenizer
    if not (
        issubclass(kind, Fast)
        and kind.__call__ is Fast.__call__
        and kind._encode_plus is Fast._encode_plus
    ):
        return None
    # A call puts away what an earlier one, or the vocabulary's file, asked for.
    tokenizer(["a"], add_special_tokens=False)
    cuts_or_fills = backend.truncation is not None or backend.padding is not None
    special = backend.encode_special_tokens == tokenizer.split_special_tokens
    return backend if special and not cuts_or_fills else None


def _adds_space(tokenizer: Tokenizer) -> bool:
    """Tell whether ``a`` already reads as `` a``, as in SentencePiece vocabularies."""
    ids = tokenizer(["a"], add_special_tokens=False)["input_ids"][0]
    return bool(ids) and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("\u2581")
