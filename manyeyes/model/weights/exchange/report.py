"""What became of every key of somebody's weights: strict, and said in full.

A key is used, or known to be of no use (with the reason), or the weights are refused; a tensor of
ours is filled, or taken from elsewhere, or the weights are refused. Nothing is guessed and nothing
is left at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from manyeyes.model.weights.exchange.experts import Piece

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Unused:
    """A key of a file that is of no use, and why."""

    reason: str


@dataclass
class ImportReport:
    """Names on both sides."""

    reference: str
    target: str
    """What the weights are read as."""
    used: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Published name to the names it fills; several, when it is a stack of them."""
    unused: dict[str, str] = field(default_factory=dict)
    """Published name to the reason why it is of no use."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Part of the model to the weights it is taken from instead."""
    missing: list[str] = field(default_factory=list)
    """Our names that nothing fills."""
    unexpected: list[str] = field(default_factory=list)
    """Published names that nobody knows."""
    misshapen: list[str] = field(default_factory=list)
    """Published names whose shape is not that of our tensor, with both."""
    pieces: dict[str, Piece] = field(default_factory=dict)
    """Of the used names, those that are a part of a tensor of ours."""
    joined: dict[str, Shape] = field(default_factory=dict)
    """Our tensors that come in pieces, with their shapes."""

    def take(
        self,
        key: str,
        shape: Shape,
        goal: tuple[str, ...] | Piece | Unused | None,
        wanted: Mapping[str, Shape],
    ) -> None:
        """Note what a key is for; ``None`` if nobody knows it."""
        if isinstance(goal, Unused):
            self.unused[key] = goal.reason
        elif isinstance(goal, Piece):
            self._take_piece(key, shape, goal, wanted)
        elif goal is None or any(name not in wanted for name in goal):
            self.unexpected.append(key)
        elif len(goal) > 1 and (not shape or shape[0] % len(goal)):
            self.misshapen.append(f"{key}: {shape} is no stack of {len(goal)}")
        else:
            part = shape if len(goal) == 1 else (shape[0] // len(goal), *shape[1:])
            wrong = [name for name in goal if wanted[name] != part]
            if wrong:
                self.misshapen.append(f"{key}: {part} instead of {wanted[wrong[0]]}")
            self.used[key] = goal

    def _take_piece(
        self, key: str, shape: Shape, piece: Piece, wanted: Mapping[str, Shape]
    ) -> None:
        whole = wanted.get(piece.target)
        expected = None if whole is None else piece.shape_in(whole)
        if whole is None or expected is None:
            self.unexpected.append(key)
            return
        if shape != expected:
            self.misshapen.append(f"{key}: {shape} instead of {expected}")
        self.used[key], self.pieces[key] = (piece.target,), piece
        self.joined[piece.target] = whole

    def filled(self) -> set[str]:
        """Return our names that some key, or pieces for all of it, fill."""
        found = {name for key, goal in self.used.items() if key not in self.pieces for name in goal}
        together: dict[str, set[Piece]] = {}
        for piece in self.pieces.values():
            together.setdefault(piece.target, set()).add(piece)
        for target, pieces in together.items():
            if len(pieces) == next(iter(pieces)).number_in(self.joined[target]):
                found.add(target)
        return found

    @property
    def problem(self) -> str | None:
        """One sentence on why the weights are refused; None when they are whole."""
        said = f"The weights {self.reference!r} are not those of {self.target}: "
        if self.misshapen:
            return f"{said}a shape differs, {self.misshapen[0]}{_more(self.misshapen)}."
        if self.unexpected:
            return f"{said}nobody knows {self.unexpected[0]!r}{_more(self.unexpected)}."
        if self.missing:
            return f"{said}{self.missing[0]!r} is missing{_more(self.missing)}."
        return None

    def to_json(self) -> dict[str, object]:
        """Return everything, for ``--json`` and the file beside the weights."""
        return {
            "source": self.reference,
            "as": self.target,
            "ok": self.problem is None,
            "used": {key: list(names) for key, names in self.used.items()},
            "unused": self.unused,
            "elsewhere": self.elsewhere,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": self.misshapen,
        }


def _more(items: list[str]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
