"""Time, as something that can be handed in: a test of a wait of days takes milliseconds."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What waiting needs of time."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes backwards."""

    def sleep(self, seconds: float) -> None:
        """Return after that long."""


class SystemClock:
    """The time of this machine."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep; a signal handler may raise out of it."""
        time.sleep(seconds)
