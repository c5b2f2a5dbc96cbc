"""The journal of a run: one line for each step that starts or ends, from many processes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydantic import JsonValue

JOURNAL = "MANYEYES_JOURNAL"
"""Names the file to which every step process of a run appends its events."""

EventKind = Literal["started", "finished", "failed", "skipped"]


@dataclass(frozen=True)
class Event:
    """One line of a run's journal."""

    step: str
    """``sft``, or ``prealign:clip``; ``run`` for the run as a whole."""
    event: EventKind
    out: str = ""
    digest: str = ""
    message: str = ""
    exit_code: int = 0
    process: int = 0
    """Number of the step's process; 0 where it must not be stopped."""
    time: float = field(default_factory=time.time)
    """Seconds since the epoch."""


def read_journal(path: Path) -> list[Event]:
    """Return the events of a run so far; a line that is still being written is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [Event(**json.loads(line)) for line in lines if line.endswith("\n")]


def write_event(path: Path, event: Event) -> None:
    """Append one line to a journal."""
    append_line(path, vars(event))


def append_line(path: Path, value: dict[str, JsonValue], mode: int = 0o644) -> None:
    """Append JSON to a file of lines in one write, so that those of many processes do not mix.

    Args:
        path: the file; made if it is not there, in a folder that is.
        value: what the line says.
        mode: permissions of a new file.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
    try:
        os.write(descriptor, (json.dumps(value) + "\n").encode())
    finally:
        os.close(descriptor)
