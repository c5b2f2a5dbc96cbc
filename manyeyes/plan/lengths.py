"""How long a stage's samples are: read from the dataset when there is one, else assumed, and said.

The assumption is that of a caption stage and of instruction data like Eagle's 1.8M: captions of 28
tokens of which 20 are learned; conversations of 300 beside a picture (150 learned) and of 420
without one (230 learned), which 19 of 100 are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.artifact.manifest import MANIFEST
from manyeyes.config.recipe import ImportedData
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyeyes.config.recipe import Recipe, TrainSection
    from manyeyes.data.dataset.sample import Sample
    from manyeyes.plan.stages import Stage

CHARACTERS_PER_TOKEN = 4.0
"""Of English under a vocabulary of 32,000, where no tokenizer can be had."""
MAX_SAMPLES = 20_000
"""More are not read: every n-th of a larger dataset."""


@dataclass(frozen=True)
class Row:
    """A kind of sample, on average."""

    share: float
    """Of the stage's samples, 0 to 1."""
    length: int
    """Positions, pictures spliced in."""
    supervised: int
    """Learned positions."""
    images: float


@dataclass(frozen=True)
class Lengths:
    """The samples of a stage."""

    rows: tuple[Row, ...]
    longest: int
    """Positions of the longest sample: what memory must hold."""
    source: str
    """Where the numbers are from, in words."""
    multiple: int = 1
    """On a CPU, batches are padded to a multiple of so many positions."""

    @property
    def longest_on_cpu(self) -> int:
        """Positions of the longest batch on a CPU: what memory must hold there."""
        return -(-self.longest // self.multiple) * self.multiple

    def __str__(self) -> str:
        """Say where the numbers are from, and how they are rounded."""
        if self.multiple == 1:
            return self.source
        return f"{self.source}; on a CPU padded to multiples of {self.multiple}"


def dataset_of(recipe: Recipe, given: Path | None) -> Path | None:
    """Return the finished dataset of a recipe, if there is one here.

    Raises:
        UserError: ``given`` is not a finished dataset.
    """
    if given is not None:
        if not (given / MANIFEST).is_file():
            raise UserError(
                f"--dataset {given}: there is no finished dataset; it has no {MANIFEST}."
            )
        return given
    if not isinstance(recipe.data, ImportedData):
        return None
    folder = _data_folder(recipe.data)
    return folder if (folder / MANIFEST).is_file() else None


def _data_folder(data: ImportedData) -> Path:
    return Path(os.environ.get("MANYEYES_DATA", "data")) / data.name


def absent_dataset(recipe: Recipe) -> str:
    """Say which imported dataset is not here; empty where nothing is missed."""
    if not isinstance(recipe.data, ImportedData) or dataset_of(recipe, None) is not None:
        return ""
    return f"{_data_folder(recipe.data)} is not here"


def in_steps(section: TrainSection, dataset: Path | None) -> TrainSection:
    """Return a section in steps, where the dataset that its epochs are counted on is here."""
    if section.epochs is None or dataset is None:
        return section
    from manyeyes.data.dataset.dataset import Dataset

    return section.on_samples(len(Dataset.open(dataset).samples("train", set(section.sources))))


def lengths_of(stage: Stage, num_visual: int, dataset: Path | None, missing: str = "") -> Lengths:
    """Return a stage's lengths.

    Args:
        stage: its sources say which samples are used.
        num_visual: positions one picture takes.
        dataset: a finished one, or None to assume.
        missing: why it must be assumed, in words.

    Raises:
        UserError: the dataset has nothing of a source to train on.
    """
    import torch

    from manyeyes.training.engine import length_multiple

    if dataset is None:
        found = assumed(stage, num_visual)
        found = replace(found, source=f"{missing}, so {found.source}") if missing else found
    else:
        found = _read(stage, num_visual, dataset)
    multiple = length_multiple(stage.section.precision, torch.device("cpu"))
    return replace(found, multiple=multiple)


def assumed(stage: Stage, num_visual: int) -> Lengths:
    """Return the lengths of the module's text, cut at the longest that the model takes."""
    limit = stage.model.max_length
    if stage.task.stage == "pretrain":
        rows = [Row(1.0, num_visual + 28, 20, 1.0)]
        longest = min(limit, num_visual + 128)
        text = f"assumed: captions, {num_visual} + 28 positions, 20 learned"
    else:
        rows = [Row(0.81, num_visual + 300, 150, 1.0), Row(0.19, 420, 230, 0.0)]
        longest = limit
        text = (
            f"assumed: 81% with a picture, {num_visual} + 300 positions, 150 learned; "
            "19% text, 420 positions, 230 learned"
        )
    if max(row.length for row in rows) > limit:
        text += f"; cut at {limit}"
    return Lengths(tuple(_cut(row, num_visual, limit) for row in rows), longest, text)


def _cut(row: Row, num_visual: int, limit: int) -> Row:
    """Cut a sample's end off where it is too long; of what is learned a like share of text goes."""
    length, visual = min(limit, row.length), round(row.images * num_visual)
    left = max(0, length - visual) / (row.length - visual)
    return replace(row, length=length, supervised=max(1, round(left * row.supervised)))


def _read(stage: Stage, num_visual: int, folder: Path) -> Lengths:
    from manyeyes.data.dataset.dataset import Dataset

    samples = Dataset.open(folder).samples("train", tasks=set(stage.section.sources))
    if not samples:
        raise UserError(
            f"{folder} has nothing to train on of {', '.join(stage.section.sources)}, the sources "
            f"of {stage.name}."
        )
    step = -(-len(samples) // MAX_SAMPLES)
    chosen = list(samples[::step])  # the only ones that are read
    measured, how = _measured(stage, num_visual, chosen)
    weights = _weights(stage, chosen)
    rows = []
    for pictured in (True, False):
        part = [
            (weight, item)
            for weight, item in zip(weights, measured, strict=True)
            if (item.images > 0) == pictured
        ]
        if part:
            rows.append(_average(part))
    longest = max(item.length for item in measured)
    return Lengths(tuple(rows), longest, f"read from {len(chosen):,} samples of {folder}, {how}")


def _weights(stage: Stage, samples: Sequence[Sample]) -> list[float]:
    """Return how often each sample is drawn: by its task's weight, evenly in the task."""
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.task] = counts.get(sample.task, 0) + 1
    present = {task: stage.section.sources[task] for task in counts}
    total = sum(present.values())
    return [present[sample.task] / total / counts[sample.task] for sample in samples]


def _average(part: Sequence[tuple[float, Row]]) -> Row:
    share = sum(weight for weight, _ in part)
    return Row(
        share,
        round(sum(weight * item.length for weight, item in part) / share),
        round(sum(weight * item.supervised for weight, item in part) / share),
        sum(weight * item.images for weight, item in part) / share,
    )


def _measured(stage: Stage, num_visual: int, samples: Sequence[Sample]) -> tuple[list[Row], str]:
    """Encode samples where the tokenizer is at hand, else count their characters."""
    from manyeyes.data.loading.conversation import Codec
    from manyeyes.model.transformer import load_tokenizer
    from manyeyes.model.weights.published import PUBLISHED

    reference, limit = stage.model.llm.weights, stage.model.max_length
    if reference in PUBLISHED:  # plan needs no network; the tokenizer of a hub id may
        return [_guess(sample, num_visual, limit) for sample in samples], "4 characters a token"
    codec = Codec(load_tokenizer(reference), stage.model.llm.template, limit, num_visual)
    encoded = codec.encode_all(samples)
    rows = [Row(1.0, e.length, e.num_supervised, e.num_images) for e in encoded]
    return rows, "with the model's tokenizer"


def _guess(sample: Sample, num_visual: int, limit: int) -> Row:
    heard = sum(len(turn.text) for turn in sample.turns if turn.speaker == "human")
    said = sum(len(turn.text) for turn in sample.turns if turn.speaker == "gpt")
    visual = num_visual * len(sample.images)
    length = visual + int((heard + said) / CHARACTERS_PER_TOKEN) + 1
    supervised = max(1, int(said / CHARACTERS_PER_TOKEN))
    return Row(1.0, min(limit, length), min(limit, supervised), len(sample.images))
