"""Time that passes only when somebody waits, so that hours of waiting take milliseconds.

The code under test and the servers it talks to share one clock. Whoever would block (a sleep, a
watch with nothing to tell, a followed log) lets it run on to the next planned action instead.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

BEGINNING = datetime(2026, 12, 1, 9, 0, tzinfo=UTC)


class SimulatedClock:
    """A clock with a plan of what happens when."""

    def __init__(self, beginning: datetime = BEGINNING) -> None:
        self.beginning = beginning
        self.slept: list[float] = []
        self._now = 0.0
        self._plan: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.lock = threading.RLock()

    def now(self) -> float:
        """Seconds since the beginning."""
        return self._now

    def date(self) -> datetime:
        """Return the time of day of this moment."""
        return self.beginning + timedelta(seconds=self._now)

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Plan an action ``delay`` seconds from now."""
        with self.lock:
            heapq.heappush(self._plan, (self._now + delay, next(self._order), action))

    def sleep(self, seconds: float) -> None:
        """Let time pass, with everything that is planned meanwhile."""
        self.slept.append(seconds)
        end = self._now + seconds
        while self.step(end):
            pass

    def step(self, limit: float) -> bool:
        """Go on to the next planned action and do it, or to ``limit`` when none is due before."""
        with self.lock:
            if not self._plan or self._plan[0][0] > limit:
                self._now = max(self._now, limit)
                return False
            due, _, action = heapq.heappop(self._plan)
            self._now = max(self._now, due)
            action()
            return True
