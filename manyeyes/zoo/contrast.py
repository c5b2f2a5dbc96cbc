"""clip-tiny: image-text contrast (Radford et al. 2021, section 2.3) on pictures and cells.

The text tower is a table of word embeddings; the text of a picture is the set of words in it, the
text of a cell is its word. Pictures are contrasted with the texts of the batch, in both directions,
and cells with the words of the whole vocabulary (region-text contrast, as in RegionCLIP, Zhong et
al. 2022): the picture term alone leaves hardly anything in single cells after a few minutes.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.zoo.cells import NUM_CLASSES, present_classes

if TYPE_CHECKING:
    from manyeyes.zoo.pictures import Pictures

EMBEDDING = 64
START_TEMPERATURE = 0.07


class Contrast(nn.Module):
    """The projections, the text tower and the two temperatures; only the image tower ships."""

    def __init__(self, width: int, class_weights: Tensor) -> None:
        super().__init__()
        self.image = nn.Linear(width, EMBEDDING)
        self.words = nn.Embedding(NUM_CLASSES, EMBEDDING)
        self.text = nn.Sequential(
            nn.Linear(EMBEDDING, EMBEDDING), nn.GELU(), nn.Linear(EMBEDDING, EMBEDDING)
        )
        self.log_scale = nn.Parameter(torch.tensor(1.0 / START_TEMPERATURE).log().repeat(2))
        self.register_buffer("class_weights", class_weights)

    def loss(self, features_BCGG: Tensor, pictures: Pictures) -> Tensor:
        """Return the picture contrast plus the cell contrast."""
        embedded_BGGE = self.image(features_BCGG.permute(0, 2, 3, 1))
        scale = self.log_scale.clamp(max=4.6).exp()
        return self._picture_loss(embedded_BGGE, pictures, scale[0]) + self._cell_loss(
            embedded_BGGE, pictures.classes_BGG, scale[1]
        )

    def _picture_loss(self, embedded_BGGE: Tensor, pictures: Pictures, scale: Tensor) -> Tensor:
        shown_BK = present_classes(pictures)
        bag_BE = shown_BK @ self.words.weight / shown_BK.sum(1, keepdim=True).clamp(min=1.0)
        text_BE = functional.normalize(self.text(bag_BE), dim=-1)
        image_BE = functional.normalize(embedded_BGGE.mean((1, 2)), dim=-1)
        logits_BB = scale * image_BE @ text_BE.T
        target_B = torch.arange(len(pictures))
        return (
            functional.cross_entropy(logits_BB, target_B)
            + functional.cross_entropy(logits_BB.T, target_B)
        ) / 2

    def _cell_loss(self, embedded_BGGE: Tensor, classes_BGG: Tensor, scale: Tensor) -> Tensor:
        cells = functional.normalize(embedded_BGGE.flatten(0, 2), dim=-1)
        words = functional.normalize(self.words.weight, dim=-1)
        assert isinstance(self.class_weights, Tensor)
        return functional.cross_entropy(
            scale * cells @ words.T, classes_BGG.flatten(), weight=self.class_weights
        )
