"""Reads curves: files of JSON rows with ``step`` and numbers, as the stages write them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NOT_CURVES = ("step", "time", "elapsed")


@dataclass(frozen=True)
class Point:
    """One value of one curve; ``time`` in seconds since 1970."""

    key: str
    step: int
    value: float
    time: float


def read(path: Path, started: float, after: int) -> list[Point]:
    """Return the points of a curve file whose step is greater than ``after``.

    The time of a row is its ``time``, else ``started`` plus its ``elapsed``: taken from the file
    alone, so that sending a row twice sends equal bytes, which MLflow stores once. A last line
    that is still being written, or was cut by a kill, is left for the next time.

    Args:
        path: The file.
        started: Seconds since 1970 at which the run began.
        after: Last step that is known already; -1 for none.
    """
    points: dict[tuple[str, int], Point] = {}
    for row in _rows(path):
        step = row.get("step")
        if not isinstance(step, int) or step <= after:
            continue
        elapsed = row.get("elapsed", 0.0)
        base = started + elapsed if isinstance(elapsed, int | float) else started
        when = row.get("time", base)
        moment = float(when) if isinstance(when, int | float) else base
        for key, value in row.items():
            if key in NOT_CURVES or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            name = metric_name(key)
            # A resumed stage writes the rows after its checkpoint again: the later one stands.
            points[name, step] = Point(name, step, float(value), moment)
    return list(points.values())


def _rows(path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def metric_name(text: str) -> str:
    """Return ``text`` with what MLflow refuses in a metric's name replaced."""
    return re.sub(r"[^\w\-. :/]", "_", text)
