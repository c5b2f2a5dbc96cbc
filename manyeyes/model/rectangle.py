"""How a picture of any shape lies on a square canvas, in whole pieces (EVE, arXiv:2406.11832).

The canvas is divided into ``pieces x pieces`` squares. The longer side of the picture takes all
pieces, small pictures too; the shorter side takes as many as it needs, rounded up, so that its
shape changes a little and nothing is cropped. What is left over is shared out before and behind,
the odd piece behind. Everything follows from width and height: no mask has to travel along.

Shapes: I images, T cells of all images together. All tensors are on the CPU, where reading them
waits for nothing.
"""

# ruff: noqa: N802, N806, N815  (a tensor's name ends in its shape)

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def fit(width: int, height: int, pieces: int) -> tuple[int, int]:
    """Return how many pieces (across, down) of ``pieces`` a picture takes."""
    longest = max(width, height)
    return -(-pieces * width // longest), -(-pieces * height // longest)


def num_tokens(width: int, height: int, pieces: int, side: int) -> int:
    """Return the tokens of a picture: its cells, the end of each row, the class token.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        pieces: of the canvas, along one side.
        side: cells of the canvas along one side, a multiple of ``pieces``.
    """
    columns, rows = fit(width, height, pieces)
    step = side // pieces
    return 1 + rows * step * (columns * step + 1)


@dataclass(frozen=True)
class Rectangles:
    """The rectangles of a batch of pictures on canvases of ``side x side`` cells."""

    side: int
    rows_I: Tensor
    columns_I: Tensor

    @classmethod
    def of(
        cls, image_sizes: Tensor | None, num_images: int, *, pieces: int, side: int
    ) -> Rectangles:
        """Lay pictures out.

        Args:
            image_sizes: (I, 2) widths and heights in pixels; None for pictures that are square.
            num_images: I.
            pieces: of the canvas, along one side.
            side: cells along one side, a multiple of ``pieces``.
        """
        import torch

        if image_sizes is None:
            whole = torch.full((num_images,), side, dtype=torch.long, device="cpu")
            return cls(side, whole, whole)
        sizes_I2 = image_sizes.detach().cpu().long()
        assert sizes_I2.shape == (num_images, 2), (sizes_I2.shape, num_images)
        longest_I1 = sizes_I2.amax(dim=1, keepdim=True)
        taken_I2 = (pieces * sizes_I2 + longest_I1 - 1) // longest_I1 * (side // pieces)
        return cls(side, taken_I2[:, 1], taken_I2[:, 0])

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.rows_I)

    @property
    def num_tokens_I(self) -> Tensor:
        """(I,) tokens of each picture: class token, cells, one end per row."""
        return 1 + self.rows_I * (self.columns_I + 1)

    @property
    def num_cells_I(self) -> Tensor:
        """(I,) cells of each picture."""
        return self.rows_I * self.columns_I

    @cached_property
    def cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """(T,) image, row and column of every cell, rows and columns counted in the picture."""
        import torch

        count_S = torch.arange(self.side, device="cpu")
        inside_ISS = (count_S.view(1, -1, 1) < self.rows_I.view(-1, 1, 1)) & (
            count_S.view(1, 1, -1) < self.columns_I.view(-1, 1, 1)
        )
        image_T, row_T, column_T = inside_ISS.nonzero().unbind(dim=1)
        return image_T, row_T, column_T

    @property
    def image_T(self) -> Tensor:
        """(T,) the image of every cell; cells stand image by image, row by row."""
        return self.cells[0]

    def on_canvas_T(self, pieces: int) -> Tensor:
        """(T,) the place of every cell in the flattened canvases (I * side * side).

        Args:
            pieces: of the canvas, in which the free part before the picture is counted.
        """
        image_T, row_T, column_T = self.cells
        step = self.side // pieces
        top_I = (pieces - self.rows_I // step) // 2 * step
        left_I = (pieces - self.columns_I // step) // 2 * step
        row_T, column_T = row_T + top_I[image_T], column_T + left_I[image_T]
        return (image_T * self.side + row_T) * self.side + column_T

    def in_picture_T(self) -> Tensor:
        """(T,) the number of every cell among those of its picture."""
        image_T, row_T, column_T = self.cells
        return row_T * self.columns_I[image_T] + column_T

    def in_tokens_T(self) -> Tensor:
        """(T,) the place of every cell among the tokens of its picture."""
        image_T, row_T, column_T = self.cells
        return 1 + row_T * (self.columns_I[image_T] + 1) + column_T

    def row_ends(self) -> tuple[Tensor, Tensor]:
        """Return image and place among its tokens of every row's end, both (R,)."""
        import torch

        count_S = torch.arange(self.side, device="cpu")
        image_R, row_R = (count_S < self.rows_I.unsqueeze(1)).nonzero().unbind(dim=1)
        return image_R, (row_R + 1) * (self.columns_I[image_R] + 1)
