"""The suite's results: ratios with their spread, the JSON file, the tables of the documentation.

Design decisions:

- A ratio is the median over pairs, with the lowest and highest pair beside it. Each pair is made of
  two runs that follow each other, so a machine that slows down in between slows both.
- Everything is written so that more is better: their seconds over ours, their bytes over ours, or a
  share of the possible. A row is ahead when its median reaches the target, and says so when not.
- ``results.json`` holds the rows that have a target; the ladder and the settings are in the tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NOISY = 0.15
"""Spread (highest minus lowest, over the median) beyond which a row is marked as noisy."""
LEAST = 1e-6
"""Seconds, or another cost: the least that is told apart from nothing."""
ROW_HEADER = ("what", "against", "ratio", "lowest to highest", "target", "", "details")


@dataclass(frozen=True)
class Spread:
    """What several pairs came to."""

    ratio: float
    """The median."""
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise one value per pair; there is at least one."""
        return cls(median(values), min(values), max(values))

    @classmethod
    def of_pairs(cls, ours: Sequence[float], theirs: Sequence[float]) -> Spread:
        """Summarise ``theirs / ours`` of pairs: costs, less is better.

        A cost of nothing is one below what a clock can tell, and taken for that.
        """
        pairs = zip(ours, theirs, strict=True)
        return cls.of([max(b, LEAST) / max(a, LEAST) for a, b in pairs])

    @property
    def noisy(self) -> bool:
        """Whether the pairs disagree too much to be trusted."""
        return self.high - self.low > NOISY * self.ratio


@dataclass(frozen=True)
class Row:
    """One result with the target it is held against."""

    name: str
    against: str
    """What it is compared with, in words."""
    spread: Spread
    target: float
    details: str = ""

    @property
    def ahead(self) -> bool:
        """Whether the median reaches the target."""
        return self.spread.ratio >= self.target

    def as_json(self) -> dict[str, str | float | bool]:
        """Return the row as it stands in ``results.json``."""
        return {
            "name": f"{self.name}, against {self.against}" if self.against else self.name,
            "ratio": round(self.spread.ratio, 4),
            "low": round(self.spread.low, 4),
            "high": round(self.spread.high, 4),
            "target": self.target,
            "ahead": self.ahead,
        }

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        details = [self.details] if self.details else []
        if self.spread.noisy:
            details.append("noisy")
        return (
            self.name,
            self.against,
            number(self.spread.ratio),
            f"{number(self.spread.low)} to {number(self.spread.high)}",
            number(self.target),
            "ahead" if self.ahead else "**behind**",
            "; ".join(details),
        )


@dataclass(frozen=True)
class Table:
    """A table without targets: the ladder, losses, rates."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass
class Findings:
    """What a run of the suite has found so far."""

    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def markdown(self, settings: str) -> str:
        """Return everything as markdown, ``settings`` (machine, versions, sizes) first."""
        parts = [settings, markdown_table(ROW_HEADER, [row.cells() for row in self.rows])]
        parts += [
            f"**{table.title}**\n\n" + markdown_table(table.header, table.rows)
            for table in self.tables
        ]
        return "\n\n".join(parts) + "\n"

    def write_json(self, path: Path) -> None:
        """Write the rows, whole or not at all."""
        rows = [row.as_json() for row in self.rows]
        atomic_write_text(path, json.dumps(rows, indent=2) + "\n")


def number(value: float) -> str:
    """Write a ratio with two decimals below ten and one above."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table; a ``|`` in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
    )


def write_between(path: Path, marker: str, text: str) -> None:
    """Replace what stands between ``<!-- marker -->`` and ``<!-- /marker -->`` in a document.

    Raises:
        UserError: the document lacks one of the two marks.
    """
    start, stop = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    page = path.read_text(encoding="utf-8")
    before, found, rest = page.partition(start)
    _, ends, after = rest.partition(stop)
    if not (found and ends):
        raise UserError(
            f"{path}: the marks {start} and {stop}, between which the tables are written, are not "
            "both there in this order; put them back."
        )
    atomic_write_text(path, f"{before}{start}\n{text.rstrip()}\n{stop}{after}")
