"""The dense term every vision objective shares: what stands in each cell of the grid.

Tiny networks have minutes, not months. A loss on all 64 cells gives 64 lessons a picture where one
label gives one, and it puts the information where a projector looks for it: in the cell's own
feature vector.

The classes are not numbered but named: a cell is compared with the embeddings that the tiny
language model has of the classes' words, as open-vocabulary detectors compare regions with a text
tower's embeddings of class names (Zhou et al. 2022, Detic, section 3). So one linear map takes
features to words, for all words at once, and that is what alignment has to find. With classifier
rows of their own, the classes lie anywhere in the feature space, and alignment has to learn them
word by word from answers.
"""

# ruff: noqa: N803, N806, N815  (a tensor's name ends in its shape)
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.data.sources.starter.vocabulary import scene_words

if TYPE_CHECKING:
    from tools.zoo.pictures import Pictures

NUM_CLASSES = len(scene_words())
FIRST_SCALE = 10.0
LARGEST_SCALE = 50.0


@dataclass(frozen=True)
class Classes:
    """What is told apart."""

    words_KE: Tensor
    """The language model's embedding of each scene word, in the order of `scene_words()`."""
    weights_K: Tensor
    """How much a cell of each class counts."""


class CellClassifier(nn.Module):
    """Compares every cell with the words; thrown away when the expert ships."""

    def __init__(self, width: int, classes: Classes) -> None:
        super().__init__()
        self.to_words = nn.Linear(width, classes.words_KE.shape[1])
        self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())
        centred_KE = classes.words_KE - classes.words_KE.mean(0)
        self.register_buffer("words_KE", functional.normalize(centred_KE, dim=-1))
        self.register_buffer("weights_K", classes.weights_K)

    def loss(self, features_BCGG: Tensor, classes_BGG: Tensor) -> Tensor:
        """Return the weighted cross entropy over all cells."""
        assert isinstance(self.words_KE, Tensor)
        assert isinstance(self.weights_K, Tensor)
        cells = self.to_words(features_BCGG.permute(0, 2, 3, 1)).flatten(0, 2)
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        logits = scale * functional.normalize(cells, dim=-1) @ self.words_KE.T
        return functional.cross_entropy(logits, classes_BGG.flatten(), weight=self.weights_K)


def present_classes(pictures: Pictures) -> Tensor:
    """Return (B, NUM_CLASSES): which classes each picture shows, empty left out."""
    shown = torch.zeros(len(pictures), NUM_CLASSES)
    shown.scatter_(1, pictures.classes_BGG.flatten(1), 1.0)
    shown[:, 0] = 0.0
    return shown
