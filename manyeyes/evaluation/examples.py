"""Examples for the report: some right and some wrong answers of each task, with their pictures."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from manyeyes.evaluation.predictions import by_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL import Image

    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.data.dataset.sample import Sample
    from manyeyes.evaluation.predictions import Prediction

LARGEST_SIDE = 448
"""Pictures are shown at most this large, in pixels."""
MOST_ANSWERS = 3
Verdict = Literal["right", "partly", "wrong"]


@dataclass(frozen=True)
class Picture:
    """A picture that needs no file."""

    uri: str
    """``data:image/png;base64,...``."""
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """A question, its accepted answers, what the model said, and whether that is right."""

    task: str
    subset: str
    question: str
    earlier_turns: int
    """Turns of the conversation before the question."""
    reference: str
    """The accepted answers in one line."""
    prediction: str
    blind_prediction: str | None
    verdict: Verdict
    score: float
    pictures: tuple[Picture, ...]


def choose(predictions: Sequence[Prediction], per_task: int) -> list[Prediction]:
    """Choose rows to show: half of them right, half not, as far as there are such.

    The choice is by the digest of the id: the same for every run, and nobody's favourites.
    """
    chosen: list[Prediction] = []
    for rows in by_task(predictions).values():
        rows.sort(key=lambda row: hashlib.sha256(row.id.encode()).digest())
        right = [row for row in rows if row.score >= 1.0]
        wrong = [row for row in rows if row.score < 1.0]
        num_wrong = min(len(wrong), max(per_task // 2, per_task - len(right)))
        chosen += right[: per_task - num_wrong] + wrong[:num_wrong]
    return chosen


def make_examples(
    predictions: Sequence[Prediction],
    samples: Mapping[str, Sample],
    dataset: Dataset,
    per_task: int,
) -> tuple[Example, ...]:
    """Choose examples and fetch their pictures.

    Args:
        predictions: the whole table.
        samples: the questions by id.
        dataset: where the pictures are.
        per_task: how many to show of each task.

    Raises:
        UserError: a picture cannot be read.
    """
    return tuple(
        Example(
            task=row.task,
            subset=row.subset,
            question=row.question,
            earlier_turns=_earlier_turns(samples[row.id]),
            reference=in_one_line(row.answers),
            prediction=row.prediction,
            blind_prediction=row.blind_prediction,
            verdict=verdict(row.score),
            score=row.score,
            pictures=tuple(as_picture(dataset.read_image(ref)) for ref in samples[row.id].images),
        )
        for row in choose(predictions, per_task)
    )


def verdict(score: float) -> Verdict:
    """Say in a word what a score of 0..1 means."""
    if score >= 1.0:
        return "right"
    return "partly" if score > 0.0 else "wrong"


def in_one_line(answers: Sequence[str]) -> str:
    """Write accepted answers shortly: ``red (8 of 10), pink (2 of 10)``."""
    counts = Counter(answers).most_common()
    if len(counts) == len(answers) or len(counts) == 1:
        texts = [text for text, _ in counts]
    else:
        texts = [f"{text} ({count} of {len(answers)})" for text, count in counts]
    more = [f"{len(texts) - MOST_ANSWERS} more"] if len(texts) > MOST_ANSWERS else []
    return ", ".join([*texts[:MOST_ANSWERS], *more])


def as_picture(image: Image.Image) -> Picture:
    """Encode a picture as a data URI, made smaller if it is large."""
    image = image.copy()
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return Picture(f"data:image/png;base64,{data}", image.width, image.height)


def _earlier_turns(sample: Sample) -> int:
    asked = [number for number, turn in enumerate(sample.turns) if turn.speaker == "human"]
    return asked[-1] if asked else 0
