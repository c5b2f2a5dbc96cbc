"""The dense term every vision objective shares: what stands in each cell of the grid.

Tiny networks have minutes, not months. A loss on all 64 cells gives 64 lessons a picture where one
label gives one, and it puts the information where a projector looks for it: in the cell's own
feature vector.
"""

# ruff: noqa: N803  (a tensor's name ends in its shape)
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.data.starter.vocabulary import scene_words

if TYPE_CHECKING:
    from manyeyes.zoo.pictures import Pictures

NUM_CLASSES = len(scene_words())


class CellClassifier(nn.Module):
    """A linear classifier of every cell; thrown away when the expert ships."""

    def __init__(self, width: int, class_weights: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(width, NUM_CLASSES)
        self.register_buffer("class_weights", class_weights)

    def loss(self, features_BCGG: Tensor, classes_BGG: Tensor) -> Tensor:
        """Return the weighted cross entropy over all cells."""
        logits = self.linear(features_BCGG.permute(0, 2, 3, 1)).flatten(0, 2)
        assert isinstance(self.class_weights, Tensor)
        return functional.cross_entropy(logits, classes_BGG.flatten(), weight=self.class_weights)


def present_classes(pictures: Pictures) -> Tensor:
    """Return (B, NUM_CLASSES): which classes each picture shows, empty left out."""
    shown = torch.zeros(len(pictures), NUM_CLASSES)
    shown.scatter_(1, pictures.classes_BGG.flatten(1), 1.0)
    shown[:, 0] = 0.0
    return shown
