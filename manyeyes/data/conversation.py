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
  join a space to the word after it. A vocabulary that puts one before every piece by itself (the
  published ones of Llama-2, Vicuna, Mixtral and Phi-3 do) is not given a second one.
- The words of inference (:func:`prompt`) are the segments of training, without the last answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from manyeyes.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from manyeyes.data.templates import Template, template_named
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from manyeyes.data.sample import ImageRef

    VisualTokens = int | Callable[[int, int], int]

IMAGE_TOKEN = -200
"""Stands in ``input_ids`` for one picture; no vocabulary has it."""
IGNORED = -100
"""Label of a position that is not learned."""


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any:  # noqa: ANN401  # transformers' BatchEncoding
        """Tokenise texts; ``["input_ids"]`` of the result is a list of lists."""

    def convert_ids_to_tokens(self, ids: int) -> Any:  # noqa: ANN401  # a str for one id
        """Return the vocabulary's spelling of an id."""


@dataclass(frozen=True)
class Encoded:
    """One sample as the language model reads it."""

    input_ids: tuple[int, ...]
    """Token ids, ``IMAGE_TOKEN`` once per picture."""
    labels: tuple[int, ...]
    """The id to be learned at each place, or ``IGNORED``."""
    length: int
    """Positions once the pictures are spliced in."""
    num_images: int
    """Pictures kept: the first ones of the sample."""
    truncated: bool
    """Something did not fit into ``max_length``."""

    @property
    def num_supervised(self) -> int:
        """Positions that are learned; the first position has nothing before it to predict it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class _Segment:
    """A piece of text, or a picture where ``text`` is None."""

    text: str | None
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
        """Encode many samples with one call of the tokenizer for their distinct texts.

        Raises:
            UserError: unknown template, or a sample's placeholders and pictures differ in number.
        """
        template = template_named(self.template)
        segmented = [list(_segments(sample, template)) for sample in samples]
        ids = _tokenize(self.tokenizer, (part.text for parts in segmented for part in parts))
        return [
            self._assemble(parts, ids, sample.images)
            for sample, parts in zip(samples, segmented, strict=True)
        ]

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids before the last answer; see :func:`prompt`."""
        return prompt(turns, self.tokenizer, self.template)

    def _assemble(
        self,
        segments: Iterable[_Segment],
        ids: dict[str, list[int]],
        images: Sequence[ImageRef],
    ) -> Encoded:
        start = template_named(self.template).start_token
        tokens, labels = _concatenate(segments, ids, self.tokenizer, start=start)
        length = num_images = kept = 0
        for token in tokens:
            cost = self._picture_cost(images[num_images]) if token == IMAGE_TOKEN else 1
            if length + cost > self.max_length:
                break
            length += cost
            num_images += token == IMAGE_TOKEN
            kept += 1
        return Encoded(
            tuple(tokens[:kept]), tuple(labels[:kept]), length, num_images, kept < len(tokens)
        )

    def _picture_cost(self, picture: ImageRef) -> int:
        if isinstance(self.num_visual_tokens, int):
            return self.num_visual_tokens
        return self.num_visual_tokens(picture.width, picture.height)


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


def prompt(turns: Sequence[Turn], tokenizer: Tokenizer, template: str) -> list[int]:
    """Return the ids of a conversation up to where the model has to answer.

    Args:
        turns: the conversation; a last ``gpt`` turn (the answer to be predicted) is left out.
        tokenizer: any Hugging Face tokenizer.
        template: key of ``TEMPLATES``.

    Returns:
        Token ids with ``IMAGE_TOKEN`` once per picture.

    Raises:
        UserError: unknown template.
    """
    chosen = template_named(template)
    asked = turns[:-1] if turns and turns[-1].speaker == "gpt" else turns
    segments = list(_turn_segments([*asked, Turn("gpt", "")], chosen))[:-1]
    ids = _tokenize(tokenizer, [segment.text for segment in segments])
    return _concatenate(segments, ids, tokenizer, start=chosen.start_token)[0]


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


def _segments(sample: Sample, template: Template) -> Iterator[_Segment]:
    num_places = sum(
        turn.text.count(IMAGE_PLACEHOLDER) for turn in sample.turns if turn.speaker == "human"
    )
    if num_places != len(sample.images):
        raise UserError(
            f"sample {sample.id}: its questions hold {num_places} {IMAGE_PLACEHOLDER} for "
            f"{len(sample.images)} pictures; write one per picture."
        )
    return _turn_segments(sample.turns, template)


def _turn_segments(turns: Sequence[Turn], template: Template) -> Iterator[_Segment]:
    """Cut a conversation where its labels change and at pictures."""
    context = template.system
    for number, turn in enumerate(turns):
        if turn.speaker == "human":
            *before, last = _question(turn.text, template)
            for words in before:
                yield _Segment(context + words)
                yield _Segment(None)
                context = ""
            context += last
        else:
            yield _Segment(context + template.answer)
            text = template.answer_gap + turn.text.strip() + template.answer_end
            yield _Segment(text, learned=True, ends=template.end_token)
            context = template.round_end if number + 1 < len(turns) else ""
    if context:
        yield _Segment(context)


def _question(text: str, template: Template) -> list[str]:
    """Return a question with its header, cut at the pictures; white space is the template's."""
    pieces = []
    for number, words in enumerate(text.split(IMAGE_PLACEHOLDER)):
        piece = template.image_end if number else template.question
        if words.strip() and template.keep_question:
            piece += template.question_gap + words.strip()
        pieces.append(piece)
    return pieces


def _concatenate(
    segments: Iterable[_Segment], ids: dict[str, list[int]], tokenizer: Tokenizer, *, start: bool
) -> tuple[list[int], list[int]]:
    """Join the segments' ids and labels, with ``start`` behind the vocabulary's start token."""
    first = tokenizer.bos_token_id if start else None
    tokens = [] if first is None else [first]
    learned = [False] * len(tokens)
    for segment in segments:
        piece = [IMAGE_TOKEN] if segment.text is None else list(ids[segment.text])
        if segment.ends and tokenizer.eos_token_id is not None:
            piece.append(tokenizer.eos_token_id)
        tokens += piece
        learned += [segment.learned] * len(piece)
    labels = [token if keep else IGNORED for token, keep in zip(tokens, learned, strict=True)]
    return tokens, labels


def _tokenize(tokenizer: Tokenizer, texts: Iterable[str | None]) -> dict[str, list[int]]:
    """Tokenise each distinct text once."""
    distinct = list(dict.fromkeys(text for text in texts if text))
    # A vocabulary that puts a space before every text by itself must not be given a second one.
    own_space = bool(distinct) and _adds_space(tokenizer)
    given = [text.removeprefix(" ") if own_space else text for text in distinct]
    ids = tokenizer(given, add_special_tokens=False)["input_ids"] if given else []
    return {"": [], **dict(zip(distinct, ids, strict=True))}


def _adds_space(tokenizer: Tokenizer) -> bool:
    """Tell whether ``a`` already reads as `` a``, as in SentencePiece vocabularies."""
    ids = tokenizer(["a"], add_special_tokens=False)["input_ids"][0]
    return bool(ids) and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("\u2581")
