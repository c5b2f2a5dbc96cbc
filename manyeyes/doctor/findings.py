"""What a check says: a state and three texts.

A finding that is not ``ok`` says what is, why it matters and the command that mends it.
``unchecked`` is a state of its own: neither good nor bad, we could not look, and the text says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """One thing a check found."""

    state: State
    what: str
    why: str = ""
    mend: str = ""
    """A command where one mends it, else what to ask of whom."""


def ok(what: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", what)


def warning(what: str, why: str, mend: str) -> Finding:
    """It works, but not as well as it could, or not for long."""
    return Finding("warning", what, why, mend)


def problem(what: str, why: str, mend: str) -> Finding:
    """Something will fail."""
    return Finding("problem", what, why, mend)


def unchecked(what: str, why: str, mend: str = "") -> Finding:
    """We could not look."""
    return Finding("unchecked", what, why, mend)


def listing(items: Sequence[str], limit: int = 5) -> str:
    """Join a few items, and count those that are left out."""
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")
