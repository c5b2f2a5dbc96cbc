"""Train one tiny expert by the objective of its big sibling; the objective's head is thrown away.

An objective sees the encoder exactly as the mixture will: pixels of the canvas in, one feature
vector per cell of the common grid out. A small penalty keeps the features' root mean square near
one, since some towers end without a normalisation and a projector starts best from inputs of unit
size.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyeyes.model.encoders.build import encoder_from_spec
from manyeyes.model.encoders.registry import find_spec
from tools.zoo.cells import Classes
from tools.zoo.classification import Classification
from tools.zoo.contrast import Contrast
from tools.zoo.detection import Detection
from tools.zoo.fit import Schedule, fit
from tools.zoo.masks import Masks
from tools.zoo.pictures import Pictures, batches, class_weights
from tools.zoo.reading import Reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from manyeyes.model.encoders.base import Encoder
    from manyeyes.runtime.progress import Progress

SIZE_WEIGHT = 0.05


@dataclass(frozen=True)
class Objective:
    """How one expert is pretrained."""

    head: Callable[[int, Classes], nn.Module]
    """Makes the head from the features' width and the classes; it has a `loss`."""
    schedule: Schedule


OBJECTIVES: dict[str, Objective] = {
    "clip-tiny": Objective(Contrast, Schedule(2000, 2e-3, 32, warmup=100)),
    "convnext-tiny": Objective(Classification, Schedule(1200, 3e-3, 32, warmup=100)),
    "sam-tiny": Objective(Masks, Schedule(1000, 2e-3, 32, warmup=100)),
    "eva02-tiny": Objective(Detection, Schedule(1500, 2e-3, 32, warmup=100)),
    "pix2struct-tiny": Objective(Reading, Schedule(1500, 2e-3, 32, warmup=100)),
}


def train_expert(
    name: str,
    pictures: Pictures,
    words_KE: Tensor,
    schedule: Schedule,
    *,
    grid: int,
    seed: int,
    progress: Progress,
) -> Encoder:
    """Return the expert `name` of the encoder table, trained by its objective.

    Args:
        name: row of the encoder table.
        pictures: what to learn from.
        words_KE: the language model's embedding of each scene word.
        schedule: how long.
        grid: side of the common grid.
        seed: of the initial weights and the batches.
        progress: told about steps.
    """
    torch.manual_seed(seed)
    spec = find_spec(name)
    encoder = encoder_from_spec(spec, grid=grid, normalization="per_encoder")
    classes = Classes(words_KE, class_weights(pictures.classes_BGG))
    head = OBJECTIVES[name].head(spec.width, classes)
    draw = batches(pictures, schedule.batch_size)

    def loss_of(generator: torch.Generator) -> Tensor:
        batch = draw(generator)
        features_BCGG = encoder(batch.pixels_BCHW)
        size = features_BCGG.float().pow(2).mean().log()
        objective: Tensor = head.loss(features_BCGG, batch)  # type: ignore[operator]  # nn.Module attribute
        total: Tensor = objective + SIZE_WEIGHT * size**2
        return total

    fit([encoder, head], loss_of, schedule, seed=seed, progress=progress)
    return encoder
