"""eva02-tiny: detection with a dense head on one map, after FCOS (Tian et al. 2019).

Every cell says whether the middle of an object is in it, of which class, and where the object's
edges are. The class is asked of every cell an object covers, not only of its middle, for the reason
`tools.zoo.cells` gives.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.zoo.cells import CellClassifier, Classes
from tools.zoo.pictures import NO_OBJECT, Pictures

BOX_WEIGHT = 2.0
CENTRE_WEIGHT = 8.0


class Detection(nn.Module):
    """Objectness, four edge distances and a class per cell."""

    def __init__(self, width: int, classes: Classes) -> None:
        super().__init__()
        self.head = nn.Linear(width, 5)
        self.cells = CellClassifier(width, classes)

    def loss(self, features_BCGG: Tensor, pictures: Pictures) -> Tensor:
        """Return objectness, box and class losses."""
        predicted_BGG5 = self.head(features_BCGG.permute(0, 2, 3, 1))
        centre_BGG, edges_BGG4 = dense_targets(pictures, features_BCGG.shape[-1])
        found = functional.binary_cross_entropy_with_logits(
            predicted_BGG5[..., 0], centre_BGG, pos_weight=torch.tensor(CENTRE_WEIGHT)
        )
        positive = centre_BGG > 0
        edges = functional.l1_loss(predicted_BGG5[..., 1:][positive], edges_BGG4[positive])
        cells: Tensor = self.cells.loss(features_BCGG, pictures.classes_BGG)
        return cells + found + BOX_WEIGHT * edges


def dense_targets(pictures: Pictures, grid: int) -> tuple[Tensor, Tensor]:
    """Return objectness (B, G, G) and edge distances (B, G, G, 4) in shares of the picture."""
    boxes_BO4 = pictures.boxes_BO4
    middle_BO2 = (boxes_BO4[..., :2] + boxes_BO4[..., 2:]) / 2
    cell_BO2 = (middle_BO2 * grid).long().clamp(0, grid - 1)
    picture, place = (pictures.box_classes_BO != NO_OBJECT).nonzero(as_tuple=True)
    column, row = cell_BO2[picture, place].unbind(-1)
    centre = torch.zeros(len(pictures), grid, grid)
    centre[picture, row, column] = 1.0
    edges = torch.zeros(len(pictures), grid, grid, 4)
    home = (torch.stack([column, row, column, row], dim=-1) + 0.5) / grid
    edges[picture, row, column] = (boxes_BO4[picture, place] - home).abs()
    return centre, edges
