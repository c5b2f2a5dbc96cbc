"""A checkpoint that answers: model, tokenizer, processor and the template it was tuned with.

One conversation at a time, decoded greedily, so that a question has one answer. The words arrive
while they are made: a streamer decodes the ids so far after every token and passes on what is new,
holding back a character whose bytes are not complete.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from manyeyes.artifact.files import RECIPE_FILE
from manyeyes.artifact.verified import open_verified
from manyeyes.config.recipe import ModelSection
from manyeyes.data.dataset.images import size_of
from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER
from manyeyes.errors import UserError
from manyeyes.runtime.json_files import read_json
from manyeyes.serve.chat import MAX_NEW_TOKENS, Conversation
from manyeyes.serve.given_images import read_images

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from manyeyes.data.dataset.images import Picture
    from manyeyes.data.dataset.sample import Turn
    from manyeyes.model.processor import Processor
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.serve.given_images import GivenImage

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are not a whole character yet."""


@dataclass(frozen=True)
class Assistant:
    """A model with all it needs to read a conversation and continue it."""

    model: VisionLanguageModel
    tokenizer: PreTrainedTokenizerBase
    processor: Processor
    template: str
    """Key of the conversation templates."""

    @classmethod
    def load(cls, checkpoint: Path) -> Assistant:
        """Load a finished checkpoint.

        Raises:
            UserError: there is none at this path, or it is unfinished or damaged, or its tokenizer
                is of another model.
        """
        open_verified(checkpoint, "checkpoint")
        template = read_template(checkpoint)
        # A dependency of transformers greets on standard output, where our answers are read.
        with contextlib.redirect_stdout(sys.stderr):
            from manyeyes.data.loading.conversation import end_ids
            from manyeyes.model.processor import Processor
            from manyeyes.model.transformer import load_checkpoint_tokenizer, stop_at
            from manyeyes.model.vlm import VisionLanguageModel

            model = VisionLanguageModel.from_pretrained(checkpoint)
            tokenizer = load_checkpoint_tokenizer(checkpoint, model.llm)
            stop_at(model.llm, end_ids(tokenizer, template))
            return cls(model, tokenizer, Processor.load(checkpoint), template)

    @property
    def positions(self) -> int:
        """Positions that the language model was built for: question and answer together."""
        config = self.model.config
        return int(getattr(self.model.llm.config, "max_position_embeddings", config.max_length))

    def ask(
        self,
        image: GivenImage | Sequence[GivenImage] | None,
        prompt: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> str:
        """Answer one question, greedily.

        Args:
            image: the path of an image file, its bytes, an image of Pillow, a list of these, or
                None for a question without an image.
            prompt: the question; its images stand before it.
            max_new_tokens: longest answer.

        Raises:
            UserError: an image cannot be read, the question is empty or too long for the model.
        """
        if IMAGE_PLACEHOLDER in prompt:
            raise UserError(
                f"The prompt holds {IMAGE_PLACEHOLDER}, which stands for an image: leave it out, "
                "the images given with it are put in front of it."
            )
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; give 1 or more.")
        conversation = Conversation(self, max_new_tokens)
        conversation.waiting = [(Path("image"), picture) for picture in read_images(image)]
        return conversation.ask(prompt).answer

    def answer(
        self,
        turns: Sequence[Turn],
        images: Sequence[Picture],
        *,
        max_new_tokens: int,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Continue a conversation that ends with a question.

        Args:
            turns: The conversation; its questions hold one ``<image>`` per picture.
            images: The pictures, in the order of their placeholders.
            max_new_tokens: Longest answer; it ends at the model's last position in any case.
            on_text: Called with each new piece of the answer.

        Raises:
            UserError: the conversation is longer than the model can read.
        """
        import torch

        from manyeyes.data.loading.conversation import end_ids, prompt, spliced_length

        ids = prompt(turns, self.tokenizer, self.template, num_images=len(images))
        sizes = (size_of(image) for image in images)
        length = spliced_length(ids, sizes, self.model.picture_tokens)
        self._check_length(length)
        input_ids_1N = torch.tensor([ids], device=self.model.device)
        pixels_I3SS = self.processor.pixels(images).to(self.model.device) if images else None
        stops = end_ids(self.tokenizer, self.template)
        streamer = _Streamer(self.tokenizer, stops, on_text or (lambda _: None))
        new_ids_1T = self.model.generate(
            input_ids_1N,
            None,
            pixels_I3SS,
            self.processor.sizes(images) if images else None,
            max_new_tokens=max(1, min(max_new_tokens, self.positions - length)),
            streamer=streamer,
        )
        return decode(self.tokenizer, new_ids_1T[0].tolist(), stops).strip()

    def _check_length(self, length: int) -> None:
        config = self.model.config
        if length >= config.max_length:
            raise UserError(
                f"The conversation takes {length} positions, but this model reads "
                f"{config.max_length}: begin a new one (/clear) or ask a shorter question."
            )


def read_template(checkpoint: Path) -> str:
    """Return the conversation template a checkpoint was tuned with.

    Raises:
        UserError: the checkpoint keeps no readable recipe.
    """
    path = checkpoint / RECIPE_FILE
    try:
        kept = read_json(path)
        model = ModelSection.model_validate_json(json.dumps(kept["model"]))
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        raise UserError(
            f"{path} is missing or is not a checkpoint's recipe: train the checkpoint again "
            "or fetch it with 'dvc pull'."
        ) from None
    return model.llm.template


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stops: Collection[int]) -> str:
    """Return the text of an answer: up to the first of ``stops``, without special tokens."""
    kept = list(takewhile(lambda number: number not in stops, ids))
    return str(tokenizer.decode(kept, skip_special_tokens=True))


class _Streamer:
    """What ``generate`` tells about new tokens (transformers' streamer protocol)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: Collection[int],
        on_text: Callable[[str], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._on_text = on_text
        self._ids: list[int] = []
        self._said = ""

    def put(self, value: Tensor) -> None:
        """Take new ids; the first call brings the prompt's, of which there are none here."""
        self._ids += value.flatten().tolist()
        text = decode(self._tokenizer, self._ids, self._stops).lstrip()
        if text.endswith(INCOMPLETE) or not text.startswith(self._said):
            return
        if text != self._said:
            self._on_text(text[len(self._said) :])
            self._said = text

    def end(self) -> None:
        """Pass on what was held back."""
        text = decode(self._tokenizer, self._ids, self._stops).strip()
        if text.startswith(self._said) and text != self._said:
            self._on_text(text[len(self._said) :])
