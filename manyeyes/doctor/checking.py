"""Runs a table of checks: side by side, each with its own time limit, none able to stop the rest.

Each check runs in a daemon thread: a connection that hangs cannot be interrupted from outside, but
it can be left behind. What a check raises is a fault of ours and is shown as such, by class and
place only: the text of a foreign error might hold a secret.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from manyeyes.doctor.findings import Finding, unchecked

Context = TypeVar("Context")

SECONDS = 20.0


@dataclass(frozen=True)
class Check(Generic[Context]):
    """One row of a table of checks."""

    name: str
    look: Callable[[Context], list[Finding]]
    seconds: float = SECONDS
    """After this the check counts as not made."""


@dataclass(frozen=True)
class Answer:
    """What one check found."""

    check: str
    findings: list[Finding]


class _Worker(threading.Thread):
    """Runs one check and keeps what it found."""

    def __init__(self, name: str, look: Callable[[], list[Finding]]) -> None:
        super().__init__(name=f"doctor-{name}", daemon=True)
        self._look = look
        self.findings: list[Finding] | None = None

    def run(self) -> None:
        """Look; an error becomes a finding."""
        try:
            self.findings = self._look()
        except Exception as error:
            self.findings = [_fault(error)]


def run_checks(checks: Sequence[Check[Context]], context: Context) -> list[Answer]:
    """Run all checks at once and answer in the order of the table."""
    start = time.monotonic()
    workers = []
    for check in checks:
        worker = _Worker(check.name, lambda check=check: check.look(context))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        worker.start()
        workers.append(worker)
    answers = []
    for check, worker in zip(checks, workers, strict=True):
        worker.join(max(0.0, start + check.seconds - time.monotonic()))
        # Read once: a check that ends just now shall not be half counted.
        findings = worker.findings
        answers.append(Answer(check.name, [_late(check.seconds)] if findings is None else findings))
    return answers


def _late(seconds: float) -> Finding:
    return unchecked(
        f"No answer within {seconds:g} s.",
        "Something on the way swallows connections, or this machine is very busy.",
        "Run the same command again; if it stays, look for a firewall or a proxy on the way.",
    )


def _fault(error: Exception) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return unchecked(
        f"The check itself failed with {type(error).__name__}{place}.",
        "This is a fault of manyeyes; the other checks are not affected.",
        "Report it with this line and the output of: manyeyes --version",
    )
