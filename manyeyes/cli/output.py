"""What the verbs print: JSON for programs, a table for people."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager

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
    """Print a table; numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 110
    Console(highlight=False, width=width).print(table)


def _is_number(text: str) -> bool:
    return text.lstrip("+-").replace(",", "").replace(".", "").rstrip("%s ").isdigit() or text == ""
