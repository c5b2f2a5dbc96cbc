"""A mixture's experts: published one by one, kept by transformers as two tensors a layer.

Mixtral's files hold ``block_sparse_moe.experts.3.w1.weight`` and so on; the module of the installed
transformers is called ``mlp``, with ``experts.gate_up_proj`` (experts, 2 x wide, width), where an
expert's w1 is the first half and its w3 the second, and ``experts.down_proj`` (experts, width,
wide), its w2. Loading a folder, transformers joins them itself; this does the same where the
tensors are taken in one by one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = ".block_sparse_moe."
EXPERT = re.compile(r"(?P<front>.+)\.experts\.(?P<expert>\d+)\.(?P<role>w[123])\.weight")
PLACES = {"w1": ("gate_up_proj", 0, 2), "w3": ("gate_up_proj", 1, 2), "w2": ("down_proj", 0, 1)}
"""Of an expert's matrix: the joined tensor, its place among the parts of that, and their number."""


@dataclass(frozen=True)
class Piece:
    """A part of a joined tensor: some rows of one expert."""

    target: str
    """Name of the joined tensor."""
    expert: int
    place: int
    parts: int
    """That an expert's share of the target has."""

    def shape_in(self, whole: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape it must have in a target; None if that has no place for it."""
        if len(whole) != 3 or self.expert >= whole[0]:
            return None
        return (whole[1] // self.parts, whole[2])

    def number_in(self, whole: tuple[int, ...]) -> int:
        """Return how many such pieces a target has."""
        return whole[0] * self.parts


def place_of(name: str) -> str | Piece:
    """Return what a name of a Mixtral's files is in transformers; other names are the same."""
    if BLOCK not in name:
        return name
    name = name.replace(BLOCK, ".mlp.")
    match = EXPERT.fullmatch(name)
    if match is None:
        return name
    tensor, place, parts = PLACES[match["role"]]
    return Piece(f"{match['front']}.experts.{tensor}", int(match["expert"]), place, parts)


class Joiner:
    """Collects pieces; a target is held from its first piece to its last."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        """Of the targets."""
        self._begun: dict[str, Tensor] = {}
        self._left: dict[str, int] = {}

    def add(self, piece: Piece, tensor: Tensor) -> Tensor | None:
        """Put a piece in its place; return the target when it is whole."""
        shape = self.shapes[piece.target]
        if piece.target not in self._begun:
            self._begun[piece.target] = tensor.new_empty(shape)
            self._left[piece.target] = piece.number_in(shape)
        rows = shape[1] // piece.parts
        first = piece.place * rows
        self._begun[piece.target][piece.expert, first : first + rows] = tensor
        self._left[piece.target] -= 1
        if self._left[piece.target]:
            return None
        return self._begun.pop(piece.target)
