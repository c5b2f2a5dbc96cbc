"""Conversations to token ids and labels, by a table of templates.

Design decisions:

- A conversation is cut where its labels change and at pictures; every piece (all that is context
  up to the answer; the answer with its end) is tokenised on its own and ids and labels are
  concatenated. The seed systems tokenise the whole text and find the answers again by counting the
  tokens of string pieces; when the two counts differ they mask the entire sample and go on. Here
  nothing is counted twice, so nothing can differ.
- A picture keeps its place: ``<image>`` becomes the one id ``IMAGE_TOKEN`` where it stands. The
  model replaces it by ``num_visual_tokens`` positions (for some models a function of the picture's
  width and height), which are counted here already, so that ``max_length`` holds after the splice.
- Truncation drops tokens from the end, never a part of a picture; it is counted. A sample that has
  nothing left to learn from is reported by the caller, never replaced by another one.
- Pieces begin with the space before them, because both byte-level and SentencePiece vocabularies
  join a space to the word after it.
- What a stranger wrote holds no control tokens, however it is spelled (``control``), and no
  pictures where the sample has none.
- The words of inference (:func:`prompt`) are the segments of training, without the last answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from manyeyes.data.dataset.index import ranges
from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER, Sample, Turn
from manyeyes.data.loading.control import Controls, Part
from manyeyes.data.loading.templates import Template, template_named
from manyeyes.data.loading.tokenizer import token_ids
from manyeyes.data.loading.tokens import (
    IGNORED,
    IMAGE_TOKEN,
    UNREADABLE,
    Encoded,
    Encodings,
    Rows,
    Tokens,
)
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from manyeyes.data.loading.tokenizer import Tokenizer

    VisualTokens = int | Callable[[int, int], int]

__all__ = [
    "IGNORED",
    "IMAGE_TOKEN",
    "Codec",
    "Encoded",
    "check",
    "encode",
    "end_ids",
    "prompt",
    "spliced_length",
    "tokenise",
]

PORTION = 4096
"""Samples whose texts are tokenised with one call."""


@dataclass(frozen=True)
class _Segment:
    """A piece of text, or a picture where ``parts`` is None."""

    parts: tuple[Part, ...] | None
    """Words of the template and of strangers, in turn."""
    learned: bool = False
    ends: bool = False
    """The end token follows."""


@dataclass(frozen=True)
class Codec:
    """A tokenizer, a template and the lengths: all that turns samples into ids."""

    tokenizer: Tokenizer
    template: str
    """Key of ``TEMPLATES``."""
    max_length: int
    """Longest sequence in positions, visual tokens included."""
    num_visual_tokens: VisualTokens
    """Positions one picture takes: a number, or a function of its width and height in pixels."""

    def encode(self, sample: Sample) -> Encoded:
        """Encode one sample; see :func:`encode`."""
        return self.encode_all([sample])[0]

    def encode_all(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Encode many samples, with few calls of the tokenizer.

        Raises:
            UserError: unknown template, or a sample's placeholders and pictures differ in number.
        """
        tokens = Tokens.joined(tokenise(samples, self.tokenizer, self.template))
        for place in np.flatnonzero(tokens.images == UNREADABLE).tolist():
            check(samples[place])
        sizes = [(ref.width, ref.height) for sample in samples for ref in sample.images]
        costs = self.visual_tokens(np.array(sizes, np.int64).reshape(-1, 2))
        return list(Encodings(Rows.all_of(tokens), costs, self.max_length))

    def visual_tokens(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many positions pictures take.

        Args:
            sizes: (pictures, 2) widths and heights in pixels.
        """
        if isinstance(self.num_visual_tokens, int):
            return np.full(len(sizes), self.num_visual_tokens, np.int64)
        distinct, which = np.unique(sizes, axis=0, return_inverse=True)
        costs = [self.num_visual_tokens(*size) for size in distinct.tolist()]
        return np.array(costs, np.int64)[which.reshape(-1)]


def encode(
    sample: Sample,
    tokenizer: Tokenizer,
    template: str,
    max_length: int,
    num_visual_tokens: VisualTokens,
) -> Encoded:
    """Encode one sample.

    Args:
        sample: its turns hold one ``<image>`` per picture.
        tokenizer: any Hugging Face tokenizer.
        template: key of ``TEMPLATES``.
        max_length: longest sequence in positions after the splice.
        num_visual_tokens: positions one picture takes, or a function of its width and height.

    Raises:
        UserError: unknown template, or the placeholders and pictures differ in number.
    """
    return Codec(tokenizer, template, max_length, num_visual_tokens).encode(sample)


def prompt(
    turns: Sequence[Turn], tokenizer: Tokenizer, template: str, *, num_images: int
) -> list[int]:
    """Return the ids of a conversation up to where the model has to answer.

    Args:
        turns: the conversation; a last ``gpt`` turn (the answer to be predicted) is left out.
        tokenizer: any Hugging Face tokenizer.
        template: key of ``TEMPLATES``.
        num_images: pictures that the conversation shows; with none ``<image>`` is a word.

    Returns:
        Token ids with ``IMAGE_TOKEN`` once per picture.

    Raises:
        UserError: unknown template.
    """
    chosen = template_named(template)
    asked = turns[:-1] if turns and turns[-1].speaker == "gpt" else turns
    pieces = _Pieces(chosen, _controls(tokenizer, chosen))
    told = _turn_segments([*asked, Turn("gpt", "")], chosen, shows=num_images > 0)
    pieces.add(list(told)[:-1])
    ids: list[int] = pieces.tokens(tokenizer).ids.tolist()
    return ids


def end_ids(tokenizer: Tokenizer, template: str) -> tuple[int, ...]:
    """Return the ids at which an answer ends: the template's end token and the tokenizer's own.

    Raises:
        UserError: unknown template, or the vocabulary has no such end token: it is of a language
            model that was tuned with another template.
    """
    stop = template_named(template).stop
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    if not stop:
        return own
    ids = tokenizer([stop], add_special_tokens=False)["input_ids"][0]
    if len(ids) != 1:
        raise UserError(
            f"The template {template!r} ends answers with {stop}, which is not a token of this "
            "language model: choose the template that it was tuned with."
        )
    return tuple(dict.fromkeys((*ids, *own)))


def spliced_length(
    ids: Sequence[int], sizes: Iterable[tuple[int, int]], num_visual_tokens: VisualTokens
) -> int:
    """Return the positions that ids take once their pictures are spliced in.

    Args:
        ids: with ``IMAGE_TOKEN`` once per picture.
        sizes: width and height in pixels of each picture.
        num_visual_tokens: positions one picture takes, or a function of its width and height.
    """
    if isinstance(num_visual_tokens, int):
        return len(ids) + sum(num_visual_tokens - 1 for _ in sizes)
    return len(ids) + sum(num_visual_tokens(*size) - 1 for size in sizes)


def check(sample: Sample) -> None:
    """Look whether a sample can be encoded.

    Raises:
        UserError: its placeholders and pictures differ in number.
    """
    if not sample.images:
        return
    num_places = sum(
        turn.text.count(IMAGE_PLACEHOLDER) for turn in sample.turns if turn.speaker == "human"
    )
    if num_places != len(sample.images):
        raise UserError(
            f"sample {sample.id}: its questions hold {num_places} {IMAGE_PLACEHOLDER} for "
            f"{len(sample.images)} pictures; write one per picture."
        )


def tokenise(
    samples: Iterable[Sample | UserError], tokenizer: Tokenizer, template: str
) -> Iterator[Tokens]:
    """Yield samples as ids, a portion at a time.

    Args:
        samples: the samples; in the place of one that could not be read stands the error.
        tokenizer: any Hugging Face tokenizer.
        template: key of ``TEMPLATES``.

    Raises:
        UserError: unknown template.
    """
    chosen = template_named(template)
    controls = _controls(tokenizer, chosen)
    rest = iter(samples)
    while portion := list(islice(rest, PORTION)):
        pieces = _Pieces(chosen, controls)
        for sample in portion:
            try:
                if isinstance(sample, UserError):
                    raise sample
                check(sample)
            except UserError:
                pieces.add_unreadable()
            else:
                pieces.add(_turn_segments(sample.turns, chosen, shows=bool(sample.images)))
        yield pieces.tokens(tokenizer)


def _controls(tokenizer: Tokenizer, template: Template) -> Controls:
    words = (template.system, template.question, template.answer, template.round_end)
    return Controls.of(tokenizer, "".join((*words, template.answer_end, template.image_end)))


def _turn_segments(turns: Sequence[Turn], template: Template, *, shows: bool) -> Iterator[_Segment]:
    """Cut a conversation where its labels change and, if it shows pictures, at them."""
    context: tuple[Part, ...] = ((template.system, False),)
    for number, turn in enumerate(turns):
        if turn.speaker == "human":
            *before, last = _question(turn.text, template, shows=shows)
            for words in before:
                yield _Segment(context + words)
                yield _Segment(None)
                context = ()
            context += last
        else:
            yield _Segment((*context, (template.answer, False)))
            text = (
                (template.answer_gap, False),
                (turn.text.strip(), True),
                (template.answer_end, False),
            )
            yield _Segment(text, learned=True, ends=template.end_token)
            context = ((template.round_end, False),) if number + 1 < len(turns) else ()
    if context:
        yield _Segment(context)


def _question(text: str, template: Template, *, shows: bool) -> list[tuple[Part, ...]]:
    """Return a question with its header, cut at the pictures; white space is the template's."""
    pieces: list[tuple[Part, ...]] = []
    for number, words in enumerate(text.split(IMAGE_PLACEHOLDER) if shows else [text]):
        piece: tuple[Part, ...] = ((template.image_end if number else template.question, False),)
        if words.strip() and template.keep_question:
            piece = (*piece, (template.question_gap, False), (words.strip(), True))
        pieces.append(piece)
    return pieces


_PICTURE, _START, _END = range(3)
"""Numbers of the pieces that are no text."""


@dataclass
class _Pieces:
    """What samples are put together of: texts by their numbers, each distinct one once."""

    template: Template
    controls: Controls
    texts: dict[str | tuple[Part, ...], int] = field(default_factory=dict)
    """Texts to their numbers; in parts where a stranger spells a control token."""
    numbers: list[int] = field(default_factory=list)
    """Of the pieces, one sample's after another's."""
    learned: list[bool] = field(default_factory=list)
    """Per piece."""
    ends: list[int] = field(default_factory=list)
    """Per sample the number of pieces up to its end."""
    images: list[int] = field(default_factory=list)
    """Per sample."""

    def add(self, segments: Iterable[_Segment]) -> None:
        """Add a sample."""
        num_images = 0
        if self.template.start_token:
            self._add(_START, learned=False)
        for segment in segments:
            if segment.parts is None:
                num_images += 1
                self._add(_PICTURE, learned=False)
                continue
            text = "".join([words for words, _ in segment.parts])
            if text:
                key = segment.parts if self.controls.are_in(segment.parts) else text
                number = self.texts.setdefault(key, _END + 1 + len(self.texts))
                self._add(number, learned=segment.learned)
            if segment.ends:
                self._add(_END, learned=segment.learned)
        self.ends.append(len(self.numbers))
        self.images.append(num_images)

    def add_unreadable(self) -> None:
        """Add a sample that cannot be encoded: no ids."""
        self.ends.append(len(self.numbers))
        self.images.append(UNREADABLE)

    def tokens(self, tokenizer: Tokenizer) -> Tokens:
        """Tokenise the texts and put the samples together."""
        marks = (IMAGE_TOKEN, tokenizer.bos_token_id, tokenizer.eos_token_id)
        found = [[] if mark is None else [mark] for mark in marks]
        found += token_ids(tokenizer, list(self.texts), self.controls)
        sizes = np.fromiter(map(len, found), np.int64, len(found))
        flat = np.fromiter(chain.from_iterable(found), np.int32, int(sizes.sum()))
        numbers = np.array(self.numbers, np.int64)
        counts = sizes[numbers]
        places = ranges((np.cumsum(sizes) - sizes)[numbers], counts)
        bounds = np.concatenate([[0], np.cumsum(counts)])[[0, *self.ends]]
        return Tokens.made(
            flat[places],
            np.repeat(np.array(self.learned, bool), counts),
            np.diff(bounds),
            np.array(self.images, np.int64),
        )

    def _add(self, number: int, *, learned: bool) -> None:
        self.numbers.append(number)
        self.learned.append(learned)
