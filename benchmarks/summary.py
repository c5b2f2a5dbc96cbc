"""The training stages' ratios in one table, from ``benchmarks/results.json`` into the README.

    python -m benchmarks.summary

``make bench`` does it when it has measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results import markdown_table, number, write_between
from benchmarks.stages import IMPROVED, PREALIGN, PRETRAIN, SFT, SFT_TEXT, SHIPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).parent / "results.json"
README = Path("README.md")
MARKER = "bench-summary"
STAGES = (
    PREALIGN.name,
    PRETRAIN.name,
    f"{PRETRAIN.name}, features kept",
    SFT.name,
    SFT_TEXT.name,
)


def main() -> int:
    """Write the table into the README of the current folder."""
    write_between(README, MARKER, summary(json.loads(RESULTS.read_text("utf-8"))))
    return 0


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of the rows of a ``results.json``: lowest to highest over the shapes."""
    lines = [
        (stage, *(_range(rows, f"{stage}, vocabulary", against) for against in (SHIPPED, IMPROVED)))
        for stage in STAGES
    ]
    header = ("times as fast in", f"as the {SHIPPED}", f"as {IMPROVED}")
    ahead = sum(row["ahead"] for row in rows)
    text = f"{ahead} of the {len(rows)} rows of `make bench` reach their targets."
    return f"{markdown_table(header, lines)}\n\n{text}"


def _range(rows: Sequence[dict[str, Any]], start: str, against: str) -> str:
    ratios = [
        row["ratio"]
        for row in rows
        if row["name"].startswith(start) and row["name"].endswith(f", against {against}")
    ]
    return f"{number(min(ratios))} to {number(max(ratios))}" if ratios else ""


if __name__ == "__main__":
    sys.exit(main())
