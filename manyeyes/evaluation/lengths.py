"""Questions that are longer than the model reads: told before anything is trained for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.data.loading.conversation import prompt, spliced_length
from manyeyes.data.loading.templates import template_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from manyeyes.config.recipe import ModelSection
    from manyeyes.data.dataset.sample import Sample
    from manyeyes.data.loading.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reader:
    """How a model reads questions."""

    tokenizer: Tokenizer
    template: str
    max_length: int
    """Positions it takes, pictures spliced in."""
    picture_tokens: Callable[[int, int], int]
    """Positions of a picture of a width and height in pixels."""

    def read(self, sample: Sample) -> tuple[list[int], int]:
        """Return a question's ids, up to where the answer begins, and the positions they take."""
        ids = prompt(sample.turns, self.tokenizer, self.template, num_images=len(sample.images))
        return ids, spliced_length(ids, self._sizes(sample), self.picture_tokens)

    def surely_fits(self, sample: Sample) -> bool:
        """Say so without the tokenizer, where the text is so short that no vocabulary matters.

        A token stands for at least one character of plain ASCII text, whatever the vocabulary.
        """
        words = template_named(self.template)
        frame = sum(len(part) for part in vars(words).values() if isinstance(part, str))
        texts = [turn.text for turn in sample.turns]
        if not all(text.isascii() for text in texts):
            return False
        letters = sum(len(text) + frame for text in texts)
        pictures = sum(self.picture_tokens(*size) for size in self._sizes(sample))
        return letters + pictures <= self.max_length

    def _sizes(self, sample: Sample) -> Iterator[tuple[int, int]]:
        return ((ref.width, ref.height) for ref in sample.images)


def too_long(samples: Iterable[Sample], reader: Reader) -> list[tuple[Sample, int]]:
    """Return the samples whose questions do not fit, with their lengths in positions."""
    maybe = (sample for sample in samples if not reader.surely_fits(sample))
    measured = ((sample, reader.read(sample)[1]) for sample in maybe)
    return [(sample, length) for sample, length in measured if length > reader.max_length]


def sentence(found: Sequence[tuple[Sample, int]], limit: int) -> str:
    """Say which questions are too long, and what can be done about it."""
    first, length = found[0]
    more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
    return (
        f"the question of sample {first.id}{more} takes {length:,} positions, more than "
        f"model.max_length, {limit:,}: write eval.too_long: leave_out to score the others and "
        "count it, remove it from the data, or raise max_length (which trains everything again)."
    )


def reader_of(model: ModelSection) -> Reader:
    """Return how a recipe's model will read; nothing but its tokenizer is loaded.

    Raises:
        UserError: the tokenizer or the language model's config cannot be read.
    """
    import torch

    from manyeyes.model.transformer import load_tokenizer
    from manyeyes.model.vlm import VisionLanguageModel

    tokenizer = load_tokenizer(model.llm.weights)
    with torch.device("meta"):
        vlm = VisionLanguageModel.from_recipe(model, seed=0, load=False)
    return Reader(tokenizer, model.llm.template, model.max_length, vlm.picture_tokens)
