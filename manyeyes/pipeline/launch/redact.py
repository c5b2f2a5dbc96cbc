"""Taking secrets out of lines that are shown and kept.

Two nets: the values of this process's own secret variables (the training pods have the same ones),
and the shapes that credentials of the services around have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HIDDEN = "[hidden]"
_SECRET_VARIABLE = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE
)
_SHORTEST = 6
"""Shorter values also occur by chance."""
_SHAPES = (
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\b(?:hf|ghp|gho|glpat|sk)[_-][A-Za-z0-9_-]{16,}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"),
    re.compile(
        r"(?i)(?:(?<=password=)|(?<=passwd=)|(?<=api_key=)|(?<=access_key=)|(?<=_secret=))[^\s,;'\"]+"
    ),
)


class Redactor:
    """Replaces secrets in text."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Take the secrets of an environment."""
        values = {
            value
            for name, value in environment.items()
            if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST and not _is_path(value)
        }
        self._values = sorted(values, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        for shape in _SHAPES:
            text = shape.sub(HIDDEN, text)
        return text


@dataclass(frozen=True)
class Voice:
    """Where the launcher's sentences and the lines of the training go, without secrets."""

    write: Callable[[str], None]
    redact: Redactor = field(default_factory=Redactor)

    def say(self, text: str) -> None:
        """Write a sentence of the launcher."""
        self.line(f"[launch] {text}")

    def line(self, text: str) -> None:
        """Write a line of a log."""
        self.write(self.redact(text))


def _is_path(value: str) -> bool:
    return value.startswith("/") and os.path.exists(value)
