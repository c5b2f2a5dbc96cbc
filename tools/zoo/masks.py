"""sam-tiny: masks from boxes (Kirillov et al. 2023), with the class of the masked thing.

The prompt is the box of one object. Its embedding, together with the features under the box, asks
every quarter cell whether it belongs to the object; focal and dice loss, as in the paper's appendix
A. The annotations have boxes, so the true mask is drawn from the pixels: what differs from the
picture's ground inside the box.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.zoo.cells import CellClassifier, Classes
from tools.zoo.pictures import NO_OBJECT, Pictures

FINE = 4  # mask pixels along one side of a cell
MASK_WIDTH = 16
INK = 40.0  # difference from the ground, of 255, that counts as the object
FOCAL_WEIGHT, FOCAL_POWER = 20.0, 2


class Masks(nn.Module):
    """A prompt encoder and a mask decoder far smaller than the encoder they teach."""

    def __init__(self, width: int, classes: Classes) -> None:
        super().__init__()
        self.prompt = nn.Sequential(
            nn.Linear(4 + width, 64), nn.GELU(), nn.Linear(64, MASK_WIDTH + 1)
        )
        self.pixels = nn.Linear(width, FINE * FINE * MASK_WIDTH)
        self.cells = CellClassifier(width, classes)

    def loss(self, features_BCGG: Tensor, pictures: Pictures) -> Tensor:
        """Return focal plus dice loss of one object per picture, plus the cells' loss."""
        boxes_B4, has_object_B = first_objects(pictures)
        grid = features_BCGG.shape[-1]
        inside_BGG = box_masks(boxes_B4, grid)
        area_B1 = inside_BGG.flatten(1).sum(1, keepdim=True).clamp(min=1.0)
        pooled_BC = (features_BCGG * inside_BGG.unsqueeze(1)).flatten(2).sum(-1) / area_B1
        asked_BM = self.prompt(torch.cat([boxes_B4, pooled_BC], dim=1))
        fine_BNM = self.pixels(features_BCGG.permute(0, 2, 3, 1))
        fine_BMYX = functional.pixel_shuffle(fine_BNM.permute(0, 3, 1, 2), FINE)
        logits_BYX = torch.einsum("bmyx,bm->byx", fine_BMYX, asked_BM[:, :-1])
        logits_BYX = logits_BYX / MASK_WIDTH**0.5 + asked_BM[:, -1, None, None]
        truth_BYX = true_masks(pictures.pixels_BCHW, boxes_B4, grid * FINE)
        mask = mask_loss(logits_BYX[has_object_B], truth_BYX[has_object_B])
        cells: Tensor = self.cells.loss(features_BCGG, pictures.classes_BGG)
        return cells + mask


def first_objects(pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Return one box per picture, and whether the picture has any.

    The place in the list turns with the batch's content, so that all objects get their turn over
    the epochs.
    """
    has_BO = pictures.box_classes_BO != NO_OBJECT
    count_B = has_BO.sum(1)
    turn = int(pictures.classes_BGG.sum()) % 997
    place_B = (torch.arange(len(pictures)) + turn) % count_B.clamp(min=1)
    return pictures.boxes_BO4[torch.arange(len(pictures)), place_B], count_B > 0


def box_masks(boxes_B4: Tensor, size: int) -> Tensor:
    """Return (B, size, size) of ones where a pixel's centre is inside the box."""
    centre = (torch.arange(size) + 0.5) / size
    left, top, right, bottom = (boxes_B4[:, place, None] for place in range(4))
    across_BX = (centre >= left) & (centre <= right)
    down_BY = (centre >= top) & (centre <= bottom)
    return (down_BY[:, :, None] & across_BX[:, None, :]).float()


def true_masks(pixels_BCHW: Tensor, boxes_B4: Tensor, size: int) -> Tensor:
    """Return (B, size, size): what differs from the picture's median colour inside the box."""
    values = pixels_BCHW.float()
    ground_BC11 = values.flatten(2).median(-1).values[:, :, None, None]
    ink_B1HW = ((values - ground_BC11).abs().amax(1, keepdim=True) > INK).float()
    ink_BYX = functional.adaptive_avg_pool2d(ink_B1HW, size)[:, 0] > 0.3
    return ink_BYX.float() * box_masks(boxes_B4, size)


def mask_loss(logits_NYX: Tensor, truth_NYX: Tensor) -> Tensor:
    """Return focal (Lin et al. 2017) plus dice loss, weighted 20 to 1 as in SAM."""
    if len(logits_NYX) == 0:
        return logits_NYX.sum()
    plain = functional.binary_cross_entropy_with_logits(logits_NYX, truth_NYX, reduction="none")
    focal = (plain * (1.0 - torch.exp(-plain)) ** FOCAL_POWER).mean()
    chance = logits_NYX.sigmoid()
    overlap = (chance * truth_NYX).sum((1, 2))
    dice = 1.0 - (2.0 * overlap + 1.0) / (chance.sum((1, 2)) + truth_NYX.sum((1, 2)) + 1.0)
    return FOCAL_WEIGHT * focal + dice.mean()
