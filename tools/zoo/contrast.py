"""clip-tiny: image-text contrast (Radford et al. 2021, section 2.3) on pictures and cells.

The text tower starts from the tiny language model's word embeddings; the text of a picture is the
set of words in it, the text of a cell is its word. Pictures are contrasted with the texts of the
batch, in both directions, and cells with the words of the whole vocabulary (region-text contrast,
as in RegionCLIP, Zhong et al. 2022): the picture term alone leaves hardly anything in single cells
after a few minutes.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.zoo.cells import CellClassifier, Classes, present_classes

if TYPE_CHECKING:
    from tools.zoo.pictures import Pictures

EMBEDDING = 64
START_TEMPERATURE = 0.07


class Contrast(nn.Module):
    """The projections, the text tower and its temperature; only the image tower ships."""

    def __init__(self, width: int, classes: Classes) -> None:
        super().__init__()
        word_width = classes.words_KE.shape[1]
        self.image = nn.Linear(width, EMBEDDING)
        self.text = nn.Sequential(
            nn.Linear(word_width, EMBEDDING), nn.GELU(), nn.Linear(EMBEDDING, EMBEDDING)
        )
        self.log_scale = nn.Parameter(torch.tensor(1.0 / START_TEMPERATURE).log())
        self.cells = CellClassifier(width, classes)

    def loss(self, features_BCGG: Tensor, pictures: Pictures) -> Tensor:
        """Return the picture contrast plus the cell contrast."""
        pooled_BE = self.image(features_BCGG.mean((2, 3)))
        scale = self.log_scale.clamp(max=4.6).exp()
        cells: Tensor = self.cells.loss(features_BCGG, pictures.classes_BGG)
        return self._picture_loss(pooled_BE, pictures, scale) + cells

    def _picture_loss(self, pooled_BE: Tensor, pictures: Pictures, scale: Tensor) -> Tensor:
        shown_BK = present_classes(pictures)
        words_KE = self.cells.words_KE
        assert isinstance(words_KE, Tensor)
        bag_BE = shown_BK @ words_KE / shown_BK.sum(1, keepdim=True).clamp(min=1.0)
        text_BE = functional.normalize(self.text(bag_BE), dim=-1)
        image_BE = functional.normalize(pooled_BE, dim=-1)
        logits_BB = scale * image_BE @ text_BE.T
        target_B = torch.arange(len(pictures))
        to_text = functional.cross_entropy(logits_BB, target_B)
        return (to_text + functional.cross_entropy(logits_BB.T, target_B)) / 2
