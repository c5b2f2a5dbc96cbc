"""What the verbs print: JSON for programs, a table for people."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line answers --help without it
    from pydantic import JsonValue


def no_greetings() -> AbstractContextManager[object]:
    """Send what libraries print while they load to standard error: standard output is the result.

    (deepspeed, which accelerate imports, greets a machine without a GPU there.)
    """
    return contextlib.redirect_stdout(sys.stderr)


def print_json(value: JsonValue) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; numbers are right-aligned.

    What stands in it comes from recipes, data and servers: ``[/red]`` is shown, not obeyed.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(plain(title)), title_justify="left", title_style="bold", header_style="bold"
    )
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        justify: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(Text(plain(column)), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 110
    Console(highlight=False, width=width).print(table)


def plain(text: str) -> str:
    """Return a text without what would move a terminal's cursor or cannot be written to it."""
    return _UNSHOWN.sub(lambda found: repr(found.group())[1:-1], text)


_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Controls but for tab and line end, halves of characters, and what turns the direction."""


def _is_number(text: str) -> bool:
    return text.lstrip("+-").replace(",", "").replace(".", "").rstrip("%s ").isdigit() or text == ""
