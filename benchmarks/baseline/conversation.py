"""Ids and labels LLaVA's way: tokenise the whole text, then find the answers by counting.

Per sample the whole conversation is tokenised; then each round again to know how long it is, and
each round's instruction again to know where its answer begins. All one text at a time. (The authors
use the slow Python tokenizer on top of it; here both sides have the same fast one.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manyeyes.data.loading.conversation import IGNORED
from manyeyes.data.loading.templates import TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyeyes.data.dataset.sample import Sample
    from manyeyes.data.loading.tokenizer import Tokenizer

_TEMPLATE = TEMPLATES["plain_chat"]


def _ids(text: str, tokenizer: Tokenizer) -> list[int]:
    found: list[int] = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    return found


def encode(sample: Sample, tokenizer: Tokenizer, end: str) -> tuple[list[int], list[int]]:
    """Return the ids and labels of a conversation without pictures.

    Args:
        sample: of whole rounds, a question and its answer.
        tokenizer: a fast one.
        end: the text of the end token, which stands after every answer.
    """
    rounds = [
        (
            _TEMPLATE.question + " " + question.text + _TEMPLATE.answer,
            " " + answer.text + end,
        )
        for question, answer in zip(sample.turns[::2], sample.turns[1::2], strict=True)
    ]
    ids = _ids("".join(instruction + answer for instruction, answer in rounds), tokenizer)
    labels = list(ids)
    place = 0
    for instruction, answer in rounds:
        whole = len(_ids(instruction + answer, tokenizer))
        masked = len(_ids(instruction, tokenizer))
        labels[place : place + masked] = [IGNORED] * masked
        place += whole
    labels[place:] = [IGNORED] * (len(labels) - place)
    return ids, labels


def encode_all(
    samples: Sequence[Sample], tokenizer: Tokenizer, end: str
) -> list[tuple[list[int], list[int]]]:
    """Encode samples one by one."""
    return [encode(sample, tokenizer, end) for sample in samples]
