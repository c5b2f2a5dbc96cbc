"""The pictures as tensors, with what their annotations say of every cell and object.

The tiny experts learn from the annotations of the starter data: the word of each cell (the class
list is the starter data's list of scene words, so encoders and language model meet on one
vocabulary) and each object's box. Everything fits in memory: 128 x 128 pixels in bytes are 49 kB a
picture.
"""

# ruff: noqa: N803, N815  (a tensor's name ends in its shape)
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from manyeyes.data.dataset.annotation import grid_words
from manyeyes.data.sources.starter.vocabulary import COLOURS, SHAPES, printed_words, scene_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from manyeyes.data.dataset.dataset import Dataset

MAX_OBJECTS = 24
NO_OBJECT = -1
MIN_WEIGHT, MAX_WEIGHT = 0.1, 3.0


@dataclass(frozen=True)
class Pictures:
    """Pictures with the class of each cell and the boxes of their objects."""

    pixels_BCHW: Tensor  # uint8
    classes_BGG: Tensor  # index into scene_words()
    boxes_BO4: Tensor  # x0 y0 x1 y1 in shares of the picture, zero where there is no object
    box_classes_BO: Tensor  # NO_OBJECT where there is no object

    def __len__(self) -> int:
        return int(self.pixels_BCHW.shape[0])

    def take(self, indices: Tensor) -> Pictures:
        """Return the pictures at `indices`."""
        return Pictures(
            self.pixels_BCHW[indices],
            self.classes_BGG[indices],
            self.boxes_BO4[indices],
            self.box_classes_BO[indices],
        )


def load_pictures(dataset: Dataset, split: str, side: int) -> Pictures:
    """Read every picture of a split, in the order of first use."""
    index = {word: number for number, word in enumerate(scene_words())}
    annotations = dataset.annotations(split)
    references = dataset.images(split)
    count = len(references)
    boxes = np.zeros((count, MAX_OBJECTS, 4), dtype=np.float32)
    box_classes = np.full((count, MAX_OBJECTS), NO_OBJECT, dtype=np.int64)
    pixels, classes = [], []
    for row, (image_id, reference) in enumerate(references.items()):
        annotation = annotations[image_id]
        pixels.append(np.asarray(dataset.read_image(reference)).transpose(2, 0, 1))
        words = grid_words(annotation, side, reference.width)
        classes.append([[index[word] for word in line] for line in words])
        for place, item in enumerate(annotation.objects[:MAX_OBJECTS]):
            boxes[row, place] = np.asarray(item.box, dtype=np.float32) / reference.width
            box_classes[row, place] = index[item.word]
    return Pictures(
        torch.from_numpy(np.stack(pixels)),
        torch.tensor(classes),
        torch.from_numpy(boxes),
        torch.from_numpy(box_classes),
    )


def class_weights(classes_BGG: Tensor) -> Tensor:
    """Return one weight per class: rarer cells count more, by the root of their frequency.

    Nine cells of ten are empty; without weights a network learns to say so and nothing else for a
    long time.
    """
    counts = torch.bincount(classes_BGG.flatten(), minlength=len(scene_words())).float()
    weights = (counts.clamp(min=1.0) / counts[1:].mean()).rsqrt()
    return weights.clamp(MIN_WEIGHT, MAX_WEIGHT)


def batches(pictures: Pictures, batch_size: int) -> Callable[[torch.Generator], Pictures]:
    """Return a function that draws the next batch: every picture once before any picture twice."""
    waiting: list[Tensor] = []

    def draw(generator: torch.Generator) -> Pictures:
        if not waiting:
            order = torch.randperm(len(pictures), generator=generator)
            last = max(len(pictures) - batch_size, 0)
            waiting.extend(
                order[start : start + batch_size] for start in range(0, last + 1, batch_size)
            )
        return pictures.take(waiting.pop())

    return draw


def word_kinds() -> dict[str, Sequence[str]]:
    """Return the scene words by kind, as probes report them."""
    words = scene_words()
    shapes = {f"{colour}_{shape}" for colour in COLOURS for shape in SHAPES}
    printed = set(printed_words())
    return {
        "digits": [word for word in words if word.isdigit()],
        "shapes": [word for word in words if word in shapes],
        "bars": [word for word in words if word.endswith("_bar")],
        "words": [word for word in words if word in printed],
        "numbers": [word for word in words if word[0] == "n" and word[1:].isdigit()],
    }
