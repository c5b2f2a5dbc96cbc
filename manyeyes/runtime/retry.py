"""How a request whose failure may pass is repeated: one policy for every server we talk to.

Whoever asks knows which failures pass, and what to say when none is left; how long to wait, and how
often, is decided here. Clients' own retries are off: they know nothing of a connection that breaks
in the middle of an answer, and sleep where no signal and no test's clock can reach them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from manyeyes.runtime.clock import Clock, SystemClock


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often; waits double from ``first`` to ``longest``. All in seconds."""

    seconds: float = math.inf
    """From the first failure to giving up."""
    first: float = 1.0
    longest: float = 30.0
    attempts: float = math.inf
    """Requests in all."""
    spread: bool = False
    """Shorten each wait at random, by half at most, so that a hundred pods that failed together do
    not come back together."""

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return float(min(self.first * 2 ** min(failures - 1, 100), self.longest))


class Retries:
    """The failures of one request, and the waits between them."""

    def __init__(self, policy: RetryPolicy, clock: Clock | None = None) -> None:
        """Begin with none; ``clock`` waits, and tells the time."""
        self.policy = policy
        self.failures = 0
        self._clock = clock or SystemClock()
        self._began = 0.0

    def wait(self, asked: float | None = None) -> bool:
        """Wait after a failure; say whether the request shall be repeated.

        Args:
            asked: the seconds that the server wants us to wait, if it says so.
        """
        policy, now = self.policy, self._clock.now()
        self.failures += 1
        if self.failures == 1:
            self._began = now
        wait = policy.delay(self.failures) if asked is None else min(asked, policy.longest)
        if self.failures >= policy.attempts or now - self._began + wait > policy.seconds:
            return False
        if policy.spread:
            wait *= random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it
        self._clock.sleep(wait)
        return True
