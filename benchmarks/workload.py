"""What is trained on: LLaVA's lengths at a ninth of their size, with pictures, as a dataset.

LLaVA-1.5 has 576 visual tokens; instructions have about 230 tokens of text beside a picture (of
which 150 are learned) and 420 without one; captions have 28, of which 20 are learned. Here a
picture has 64 tokens and the rest is a ninth, log-normal with a deviation of 0.9, so that padding
and the share of learned positions are as in the real thing. The numbers are those of
``docs/performance.md``; samples come from a seed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER, Sample, Turn
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.loading.batches import Prepared, prepare
from manyeyes.data.loading.canvases import canvas_side
from manyeyes.data.loading.conversation import Codec

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.shapes import Shape
    from manyeyes.data.dataset.sample import ImageRef

Kind = Literal["captions", "instructions"]

SIGMA = 0.9
MEDIAN_WORDS: dict[tuple[Kind, bool], tuple[int, int]] = {
    ("captions", True): (0, 3),
    ("instructions", True): (9, 16),
    ("instructions", False): (21, 25),
}
"""Kind and whether there is a picture, to the median words of question and answer."""


class WordTokenizer:
    """One id per word ``w17``; what a tokenizer costs is measured elsewhere, with a real one."""

    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        """Tokenise texts."""
        del add_special_tokens
        return {"input_ids": [[self._id(word) for word in item.split()] for item in text]}

    def convert_ids_to_tokens(self, ids: int) -> str:
        """Return an id's spelling."""
        return f"w{ids}"

    def _id(self, word: str) -> int:
        heads = {"user": 3, "assistant": 4}
        if word in heads:
            return heads[word]
        return 5 + int(word.removeprefix("w")) % (self.vocabulary - 5) if word[1:].isdigit() else 5


@dataclass(frozen=True)
class Workload:
    """A dataset with its encoded training samples."""

    dataset: Dataset
    codec: Codec
    prepared: Prepared
    sources: dict[str, float]
    """Per task its number of samples: an epoch gives each sample once."""
    canvas_size: int

    @property
    def num_tokens(self) -> int:
        """Real positions of an epoch."""
        return int(self.prepared.encoded.lengths.sum())


def make_workload(
    path: Path, kind: Kind, shape: Shape, *, num: int, text_share: float, seed: int = 0
) -> Workload:
    """Write a dataset and encode it.

    Args:
        path: folder to write to.
        kind: of conversations.
        shape: of the model: its vocabulary, lengths and pictures.
        num: samples.
        text_share: share of samples without a picture.
        seed: of lengths, words and pictures.
    """
    num_text = round(num * text_share)
    generator = np.random.default_rng(seed)
    with DatasetWriter(path) as writer:
        for number in range(num):
            shown = number >= num_text
            refs = (
                (writer.add_image(jpeg(generator, shape.picture), f"picture-{number}"),)
                if shown
                else ()
            )
            turns = _turns(generator, kind, shape, shown=shown)
            writer.add(_sample(number, turns, refs))
    dataset = Dataset.open(path)
    tokenizer = WordTokenizer(shape.vocabulary)
    codec = Codec(tokenizer, "plain_chat", shape.positions, shape.grid**2)
    sources = {"pictures": float(num - num_text), "text": float(num_text)}
    sources = {task: count for task, count in sources.items() if count}
    prepared = prepare(dataset, codec, sources)
    return Workload(dataset, codec, prepared, sources, canvas_side(prepared.samples, shape.canvas))


def _sample(number: int, turns: tuple[Turn, ...], refs: tuple[ImageRef, ...]) -> Sample:
    task = "pictures" if refs else "text"
    return Sample(
        id=f"sample-{number}",
        split="train",
        task=task,
        subset="",
        turns=turns,
        images=refs,
        answers=(),
        source="made by the benchmark",
        licence="CC0-1.0",
        entities=(),
    )


def _turns(
    generator: np.random.Generator, kind: Kind, shape: Shape, *, shown: bool
) -> tuple[Turn, ...]:
    question, answer = (
        words(generator, round(num * float(generator.lognormal(0.0, SIGMA))), shape.vocabulary)
        for num in (shape.text_scale * median for median in MEDIAN_WORDS[kind, shown])
    )
    place = f"{IMAGE_PLACEHOLDER}\n" if shown else ""
    answer = answer or words(generator, 1, shape.vocabulary)
    return Turn("human", place + question), Turn("gpt", answer)


def words(generator: np.random.Generator, num: int, vocabulary: int) -> str:
    """Return ``num`` random words."""
    return " ".join(f"w{number}" for number in generator.integers(0, vocabulary - 5, num))


def jpeg(generator: np.random.Generator, size: tuple[int, int]) -> bytes:
    """Return a JPEG of coloured clouds, which compress about as photographs do."""
    width, height = size
    coarse = generator.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    clouds = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=float)
    grain = generator.normal(0.0, 6.0, (height, width, 3))
    buffer = io.BytesIO()
    pixels = (clouds + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
