"""A model's answers to the questions of a split: greedy, batched, resumable.

Design decisions:

- The questions are cut into batches once, sorted by length, as a function of the list alone. A run
  that was killed meets the same batches again and skips those whose answers stand in the journal,
  so the answers are those of a run that was never killed, to the last bit.
- The journal holds one JSON line per answer, with a digest over it and what names the run
  (questions, settings, model). A line without its digest is dropped, and its question asked again:
  one of another run, a torn one, one that a power failure or a bad disk left.
- The blind run asks the same questions with every picture replaced by a blank one of a single
  colour, the mean of the split's pictures. Prompts that become equal are answered once.
- An answer ends before the first end token; special tokens never reach a metric.

Shapes: B questions, N prompt tokens, I pictures, S side of the canvas, T new tokens.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.errors import Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.data.dataset.images import Picture
    from manyeyes.data.dataset.sample import ImageRef, Sample
    from manyeyes.evaluation.lengths import Reader
    from manyeyes.model.processor import Processor
    from manyeyes.model.vlm import VisionLanguageModel

MOST_PICTURES_FOR_MEAN = 256


@dataclass(frozen=True)
class Prompt:
    """One question as the model reads it."""

    id: str
    input_ids: tuple[int, ...]
    """Up to where the answer begins, ``IMAGE_TOKEN`` once per picture."""
    images: tuple[ImageRef, ...]
    length: int
    """Positions once the pictures are spliced in."""


@dataclass(frozen=True)
class Subject:
    """Who is examined: a model with all it needs to read and write."""

    model: VisionLanguageModel
    tokenizer: PreTrainedTokenizerBase
    processor: Processor
    template: str
    """Key of the conversation templates."""

    def reader(self) -> Reader:
        """Return how the model reads questions."""
        from manyeyes.evaluation.lengths import Reader

        limit = self.model.config.max_length
        return Reader(self.tokenizer, self.template, limit, self.model.picture_tokens)

    def prompts(self, samples: Sequence[Sample]) -> list[Prompt]:
        """Turn samples into prompts that end where the last answer begins.

        Raises:
            UserError: a prompt is longer than the model's ``max_length``.
        """
        from manyeyes.evaluation.lengths import sentence

        reader = self.reader()
        prompts, too_long = [], []
        for sample in samples:
            ids, length = reader.read(sample)
            if length > reader.max_length:
                too_long.append((sample, length))
            prompts.append(Prompt(sample.id, tuple(ids), sample.images, length))
        if too_long:
            raise UserError(f"eval: {sentence(too_long, reader.max_length)}")
        return prompts


class Answerer(Protocol):
    """Answers a batch of prompts, in order."""

    def __call__(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return one text per prompt."""


@dataclass(frozen=True)
class GreedyAnswerer:
    """Decodes the most likely token until the end token or ``max_new_tokens``."""

    subject: Subject
    pictures: Callable[[Sequence[ImageRef]], Iterable[Picture]]
    """Gives pictures as a model sees them; a batch's are asked for together."""
    max_new_tokens: int

    def __call__(self, prompts: Sequence[Prompt]) -> list[str]:
        """Answer a batch; pictures are decoded here, so that no more than a batch is in memory."""
        from manyeyes.data.loading.conversation import end_ids

        model, tokenizer = self.subject.model, self.subject.tokenizer
        input_ids_BN, attention_mask_BN = pad_left([prompt.input_ids for prompt in prompts])
        images = list(self.pictures([ref for prompt in prompts for ref in prompt.images]))
        processor = self.subject.processor
        pixels_I3SS = processor.pixels(images) if images else None
        device = model.device
        new_ids_BT = model.generate(
            input_ids_BN.to(device),
            attention_mask_BN.to(device),
            None if pixels_I3SS is None else pixels_I3SS.to(device),
            processor.sizes(images) if images else None,
            max_new_tokens=self.max_new_tokens,
        )
        stops = end_ids(tokenizer, self.subject.template)
        texts = (until(ids, stops) for ids in new_ids_BT.tolist())
        return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in texts]


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, N), padded on the left, where generation needs it."""
    import torch

    width = max(len(row) for row in rows)
    input_ids_BN = torch.zeros(len(rows), width, dtype=torch.long)
    attention_mask_BN = torch.zeros_like(input_ids_BN)
    for number, row in enumerate(rows):
        input_ids_BN[number, width - len(row) :] = torch.tensor(row)
        attention_mask_BN[number, width - len(row) :] = 1
    return input_ids_BN, attention_mask_BN


def until(ids: Sequence[int], stops: Collection[int]) -> list[int]:
    """Return the ids before the first of ``stops``."""
    return list(takewhile(lambda number: number not in stops, ids))


@dataclass
class Journal:
    """The answers given so far, on disk."""

    path: Path
    key: str
    """Digest of all that determines the answers."""
    answers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, *facts: object) -> Journal:
        """Read the journal of a run, or start it.

        Args:
            path: a ``.jsonl`` file; one that belongs to another run is replaced.
            facts: all that determines the answers.
        """
        journal = cls(path, hashlib.sha256(repr(facts).encode()).hexdigest())
        for line in path.read_bytes().split(b"\n") if path.is_file() else []:
            journal._take(line)
        atomic_write_text(path, "".join(journal._line(*item) for item in journal.answers.items()))
        return journal

    def add(self, answers: dict[str, str]) -> None:
        """Append the answers of a batch in one write, and have them on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(self._line(*item) for item in answers.items()))
            file.flush()
            os.fsync(file.fileno())
        self.answers.update(answers)

    def _take(self, line: bytes) -> None:
        """Read a line; one that is not whole, or not of this run, says nothing."""
        try:
            entry = json.loads(line)
            key, answer = entry["id"], entry["answer"]
            if entry["check"] == self._check(key, answer):
                self.answers[key] = answer
        except (ValueError, TypeError, KeyError, RecursionError):
            return

    def _line(self, key: str, answer: str) -> str:
        entry = {"id": key, "answer": answer, "check": self._check(key, answer)}
        return json.dumps(entry) + "\n"

    def _check(self, key: str, answer: str) -> str:
        return hashlib.sha256(json.dumps([self.key, key, answer]).encode()).hexdigest()[:16]


def cut_into_batches(prompts: Iterable[Prompt], batch_size: int) -> list[list[Prompt]]:
    """Group prompts of similar length; a function of the list, not of its order."""
    ordered = sorted(prompts, key=lambda prompt: (prompt.length, prompt.id))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def answer_all(
    prompts: Sequence[Prompt],
    answerer: Answerer,
    journal: Journal,
    *,
    batch_size: int,
    report: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Answer every prompt that the journal does not hold yet.

    Args:
        prompts: the questions.
        answerer: who answers them.
        journal: what was answered before; continued.
        batch_size: questions at once.
        report: told after each batch how many questions have an answer.
        should_stop: asked between batches.

    Returns:
        Answer by question id.

    Raises:
        Interrupted: ``should_stop`` said so; the journal keeps what was answered.
    """
    done = 0
    for batch in cut_into_batches(prompts, batch_size):
        if any(prompt.id not in journal.answers for prompt in batch):
            if should_stop():
                raise Interrupted(
                    f"Stopped after {done} of {len(prompts)} questions; "
                    "run the same command again to continue."
                )
            ids = [prompt.id for prompt in batch]
            journal.add(dict(zip(ids, answerer(batch), strict=True)))
        done += len(batch)
        if report is not None:
            report(done)
    return {prompt.id: journal.answers[prompt.id] for prompt in prompts}


def distinct_when_blind(prompts: Sequence[Prompt]) -> tuple[list[Prompt], dict[str, str]]:
    """Keep one prompt of each group that a blank picture makes equal.

    Returns:
        The kept prompts, and for every prompt's id the id of the one kept in its place.
    """
    kept: dict[tuple[object, ...], Prompt] = {}
    instead: dict[str, str] = {}
    for prompt in sorted(prompts, key=lambda prompt: prompt.id):
        sizes = tuple((ref.width, ref.height) for ref in prompt.images)
        same = kept.setdefault((prompt.input_ids, sizes), prompt)
        instead[prompt.id] = same.id
    return list(kept.values()), instead


@dataclass(frozen=True)
class BlankPictures:
    """Stands for a dataset's pictures: same sizes, one colour, nothing to see."""

    colour: tuple[int, int, int]

    def __call__(self, refs: Iterable[ImageRef]) -> list[Picture]:
        """Return a blank picture of the size of each of ``refs``."""
        from PIL import Image

        return [Image.new("RGB", (ref.width, ref.height), self.colour) for ref in refs]


def mean_colour(dataset: Dataset, refs: Iterable[ImageRef]) -> tuple[int, int, int]:
    """Return the mean colour of pictures; of an even choice of 256 if there are more.

    One colour for the whole split: a picture's own mean would tell the colour of what it shows.
    """
    import numpy as np

    distinct = sorted({ref.sha256: ref for ref in refs}.values(), key=lambda ref: ref.sha256)
    if not distinct:
        return (127, 127, 127)
    step = -(-len(distinct) // MOST_PICTURES_FOR_MEAN)
    means = [
        np.asarray(picture, dtype=np.float64).mean(axis=(0, 1))
        for picture in dataset.pictures(distinct[::step])
    ]
    red, green, blue = (round(float(value)) for value in np.mean(means, axis=0))
    return red, green, blue
