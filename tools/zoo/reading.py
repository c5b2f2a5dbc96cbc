"""pix2struct-tiny: reading rendered text (Lee et al. 2023), one word per patch.

Pix2Struct learns to write the source of a screenshot. Here the source of a picture is its written-
out scene, and the decoder is one linear map per patch, so that what is read ends in the encoder
instead of in a decoder that is thrown away. Print and scans count double: shapes and bars are
somebody else's trade.
"""

# ruff: noqa: N803  (a tensor's name ends in its shape)
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from manyeyes.data.sources.starter.vocabulary import scene_words
from tools.zoo.cells import CellClassifier, Classes
from tools.zoo.pictures import Pictures, word_kinds

TEXT_WEIGHT = 2.0


class Reading(nn.Module):
    """A classifier per patch whose written classes count double."""

    def __init__(self, width: int, classes: Classes) -> None:
        super().__init__()
        kinds = word_kinds()
        written = {*kinds["digits"], *kinds["words"], *kinds["numbers"]}
        emphasis = torch.tensor([TEXT_WEIGHT if word in written else 1.0 for word in scene_words()])
        self.cells = CellClassifier(width, replace(classes, weights_K=classes.weights_K * emphasis))

    def loss(self, features_BCGG: Tensor, pictures: Pictures) -> Tensor:
        """Return the patches' loss."""
        loss: Tensor = self.cells.loss(features_BCGG, pictures.classes_BGG)
        return loss
