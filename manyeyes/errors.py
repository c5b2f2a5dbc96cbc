"""The errors a user can meet, each with its exit code.

An error text is user interface: one or two sentences that say what is wrong, where, and what to do.
The command line prints the text alone; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ManyeyesError(Exception):
    """The run failed for a reason the user should read (exit code 1)."""

    exit_code: int = 1


class UserError(ManyeyesError):
    """The user's input is wrong (exit code 2)."""

    exit_code = 2


class GateRefused(ManyeyesError):
    """A gate looked at real evidence and said no (exit code 3)."""

    exit_code = 3


class Interrupted(ManyeyesError):
    """The work stopped at a point from which the same command continues (exit code 75)."""

    exit_code = 75


class Followed(ManyeyesError):
    """Another process of the same training failed or stopped; this one ends as that one did."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


_SHOWN = 120


def shown(value: object) -> str:
    """Return a value as a sentence shows it: printable, and not endless."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # what nests without end; a number of thousands of digits
        return f"a {type(value).__name__} without end"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}...{text[-12:]}"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or an empty string."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def unknown(what: str, word: str, known: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a table, listing what the table holds."""
    names = sorted(known)
    return UserError(
        f"Unknown {what} {word!r}: known are {', '.join(names)}{suggest(word, names)}"
        + ("" if suggest(word, names) else ".")
    )
