"""Control tokens: a template may write them, a stranger's text may not.

Design decisions:

- ``</s>`` in an answer is four signs that somebody wrote (HTML's strike-out begins like that), not
  the end of the answer; ``<|im_start|>`` in a question opens no new turn. Otherwise a model would
  learn to stop in mid-sentence, and whoever asks could speak for the assistant.
- Control tokens are a tokenizer's special tokens and those that the template writes. Other added
  tokens (runs of line breaks, ``<think>``) are vocabulary, and stay what they are.
- Texts without them, nearly all, are tokenised as ever, in one go with the template's words. Only
  the others are taken apart: the template's own control tokens become their ids, and what lies
  between them is tokenised with special tokens switched off.
- A tokenizer that cannot switch them off, or finds one all the same, is given the text in pieces,
  cut behind the first sign of each control token, so that there is none to be found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Part = tuple[str, bool]
"""A piece of text, and whether a stranger wrote it."""


@dataclass(frozen=True)
class Controls:
    """The control tokens of a tokenizer, as far as they concern one template."""

    ids: dict[str, int]
    """Spelling to id."""
    pattern: re.Pattern[str] | None
    """Finds any of them; None if there are none."""
    places: re.Pattern[str] | None
    """Finds any of them with the white space that belongs to it."""
    refused: frozenset[int]
    """Ids that plain text must not have: all but that of unknown signs."""

    @classmethod
    def of(cls, tokenizer: Any, template_words: str) -> Controls:  # noqa: ANN401  # transformers' types
        """Collect them.

        Args:
            tokenizer: any Hugging Face tokenizer.
            template_words: all that the template writes.
        """
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = set(getattr(tokenizer, "all_special_tokens", ()))
        chosen = {
            str(token.content): (number, token)
            for number, token in added.items()
            if token.content.strip()
            and (token.special or token.content in special or token.content in template_words)
        }
        if not chosen:
            return cls({}, None, None, frozenset())
        longest = sorted(chosen, key=len, reverse=True)
        unknown = getattr(tokenizer, "unk_token_id", None)
        return cls(
            {text: number for text, (number, _) in chosen.items()},
            re.compile("|".join(map(re.escape, longest))),
            re.compile("|".join(_with_space(chosen[text][1]) for text in longest)),
            frozenset(number for number, _ in chosen.values()) - {unknown},
        )

    def are_in(self, parts: Iterable[Part]) -> bool:
        """Tell whether a stranger spells one of them."""
        pattern = self.pattern
        return pattern is not None and any(
            foreign and pattern.search(text) is not None for text, foreign in parts
        )

    def encode(self, tokenizer: Any, parts: Iterable[Part], *, own_space: bool) -> list[int]:  # noqa: ANN401
        """Tokenise a text in which only the template's control tokens are such.

        Args:
            tokenizer: the tokenizer that these are of.
            parts: the text.
            own_space: the tokenizer puts a space before every text by itself.
        """
        ids: list[int] = []
        for number, (text, is_control) in enumerate(self._cut(parts)):
            if is_control:
                ids.append(self.ids[text])
            else:
                first = own_space and not number
                ids += self._plain(tokenizer, text.removeprefix(" ") if first else text)
        return ids

    def _cut(self, parts: Iterable[Part]) -> Iterator[tuple[str, bool]]:
        """Cut a text at the template's control tokens."""
        assert self.places is not None, "a text without control tokens needs no such care"
        waiting = ""
        for text, foreign in parts:
            place = 0
            for found in () if foreign else self.places.finditer(text):
                waiting += text[place : found.start()]
                if waiting:
                    yield waiting, False
                waiting, place = "", found.end()
                yield found.group().strip(), True
            waiting += text[place:]
        if waiting:
            yield waiting, False

    def _plain(self, tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401
        """Tokenise a text in which nothing is a control token."""
        assert self.pattern is not None
        try:
            ids: list[int] = tokenizer([text], add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ][0]
        except (TypeError, ValueError):  # it knows no such switch
            ids = list(self.refused)
        finally:
            tokenizer(["a"], add_special_tokens=False)  # which puts the switch back
        if not self.refused.intersection(ids):
            return ids
        places = [found.start() + 1 for found in self.pattern.finditer(text)]
        bounds = zip([0, *places], [*places, len(text)], strict=True)
        pieces = [text[start:end] for start, end in bounds if start < end]
        cut: list[list[int]] = tokenizer(pieces, add_special_tokens=False)["input_ids"]
        return [number for piece in cut for number in piece]


def _with_space(token: Any) -> str:  # noqa: ANN401  # tokenizers' AddedToken
    """Return the pattern of a token that swallows the white space beside it, if it does."""
    before = r"\s*" if token.lstrip else ""
    return before + re.escape(str(token.content)) + (r"\s*" if token.rstrip else "")
