"""What a drawn picture shows, object by object, and the same as one word per grid cell.

Design decisions:

- The starter data knows what it drew. This is written down per picture, because the tiny experts
  learn from it (classes per cell, boxes, masks) as their big siblings learned from labelled data.
- ``grid_words`` is the meeting point of vision and language: the dense classes of the encoders
  and the "written-out scenes" the language model reads are the same grid of words.
- A line of text belongs to the row of cells that holds its middle, and to the columns it covers
  by at least 40 % of their width: a letter or two over a cell's edge is noise, not a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ObjectKind = Literal["digit", "shape", "word", "bar", "number"]

EMPTY_CELL = "."
"""The scene word of a cell that shows nothing."""

COVERED = 0.4
"""Share of a cell (of its width, for a line of text) an object must cover to name it."""

# Small or written things are drawn over or beside large ones: where both claim a cell, they win.
_PRIORITY: dict[ObjectKind, int] = {"digit": 2, "word": 2, "number": 2, "shape": 1, "bar": 1}


@dataclass(frozen=True)
class SceneObject:
    """One thing in a picture."""

    kind: ObjectKind
    label: str
    """The digit, the printed word or number, the shape, or "bar"."""
    colour: str
    """Its colour's name; empty where colour means nothing (ink of scans and print)."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of its visible ink, in pixels."""

    @property
    def word(self) -> str:
        """The scene word: ``4``, ``anna``, ``n37``, ``red_circle``, ``red_bar``."""
        match self.kind:
            case "digit" | "word":
                return self.label
            case "number":
                return f"n{self.label}"
            case "shape" | "bar":
                return f"{self.colour}_{self.label}"


@dataclass(frozen=True)
class Annotation:
    """Everything drawn in one picture."""

    image: str
    """Id of the picture."""
    split: str
    kind: str
    """Which drawing it is: "numbers", "charts", "documents" or "scenes"."""
    objects: tuple[SceneObject, ...]


def grid_words(annotation: Annotation, side: int, image_size: int) -> list[list[str]]:
    """Write a picture as ``side`` rows of ``side`` words, :data:`EMPTY_CELL` where nothing is.

    Args:
        annotation: the picture's objects.
        side: number of cells along each edge (8 for 64 visual tokens).
        image_size: edge of the square picture in pixels.

    Returns:
        ``words[row][column]``, row 0 on top.
    """
    cell = image_size / side
    words = [[EMPTY_CELL] * side for _ in range(side)]
    claims = [[(0, 0.0)] * side for _ in range(side)]
    for thing in annotation.objects:
        for row, column, share in _cells(thing, side, cell):
            claim = (_PRIORITY[thing.kind], share)
            if claim > claims[row][column]:
                claims[row][column] = claim
                words[row][column] = thing.word
    return words


def _cells(thing: SceneObject, side: int, cell: float) -> list[tuple[int, int, float]]:
    """List the (row, column, covered share) an object claims: at least its middle cell."""
    left, top, right, bottom = thing.box
    middle_row = _clamp(int((top + bottom) / 2 // cell), side)
    middle_column = _clamp(int((left + right) / 2 // cell), side)
    columns = [(index, _overlap(left, right, index, cell)) for index in range(side)]
    match thing.kind:
        case "digit":
            claimed = []
        case "word" | "number":
            claimed = [(middle_row, index, share) for index, share in columns if share >= COVERED]
        case "shape" | "bar":
            rows = [(index, _overlap(top, bottom, index, cell)) for index in range(side)]
            claimed = [
                (row, column, row_share * column_share)
                for row, row_share in rows
                for column, column_share in columns
                if row_share * column_share >= COVERED
            ]
    if not any((row, column) == (middle_row, middle_column) for row, column, _ in claimed):
        claimed.append((middle_row, middle_column, COVERED))
    return claimed


def _overlap(low: float, high: float, index: int, cell: float) -> float:
    """Return the share of cell ``index`` (along one axis) that [low, high] covers."""
    return max(0.0, min(high, (index + 1) * cell) - max(low, index * cell)) / cell


def _clamp(index: int, side: int) -> int:
    return min(max(index, 0), side - 1)
