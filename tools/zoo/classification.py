"""convnext-tiny: classification, of the picture (which classes does it show?) and of each cell."""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)
from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from tools.zoo.cells import NUM_CLASSES, CellClassifier, Classes, present_classes

if TYPE_CHECKING:
    from tools.zoo.pictures import Pictures


class Classification(nn.Module):
    """A multi-label classifier over pooled features and a classifier per cell."""

    def __init__(self, width: int, classes: Classes) -> None:
        super().__init__()
        self.picture = nn.Linear(width, NUM_CLASSES)
        self.cells = CellClassifier(width, classes)

    def loss(self, features_BCGG: Tensor, pictures: Pictures) -> Tensor:
        """Return the multi-label loss plus the cells' loss."""
        logits_BK = self.picture(features_BCGG.mean((2, 3)))
        shown = functional.binary_cross_entropy_with_logits(logits_BK, present_classes(pictures))
        cells: Tensor = self.cells.loss(features_BCGG, pictures.classes_BGG)
        return cells + shown
