"""Following the log of rank 0: every line once, whatever happens to the connection.

The log is read again and again from the second of the last known line on (``sinceTime`` knows no
finer time), and what was seen is left out. A stream that stays open would break at every load
balancer's idle limit and need the same care to go on; a read of a few seconds' lines does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from manyeyes.pipeline.launch.cluster import Cluster
from manyeyes.pipeline.launch.objects import PodView

KEPT_LINES = 50


class LogFollower:
    """Writes the new lines of one pod at a time."""

    def __init__(self, cluster: Cluster, write: Callable[[str], None]) -> None:
        """Start with nothing seen.

        Args:
            cluster: where the pods are.
            write: gets every line once.
        """
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._cluster = cluster
        self._write = write
        self._pod = ""
        self._stamp = ""
        self._at_stamp = 0

    def poll(self, pod: PodView) -> int:
        """Write what is new, and return how many lines that was."""
        if pod.metadata.uid != self._pod:
            self._pod, self._stamp, self._at_stamp = pod.metadata.uid, "", 0
        since = f"{self._stamp[:19]}Z" if self._stamp else None
        text = self._cluster.log(pod.metadata.name, since=since)
        if text is None:
            return 0
        lines = [line.partition(" ") for line in text.splitlines()]
        fresh = self._new([(stamp, line) for stamp, _, line in lines])
        for line in fresh:
            self._write(line)
            self.last_lines.append(line)
        return len(fresh)

    def _new(self, lines: list[tuple[str, str]]) -> list[str]:
        """Leave out what was seen: up to the last stamp, and as many lines with that stamp."""
        seen = self._at_stamp
        fresh = []
        for stamp, line in lines:
            if stamp < self._stamp:
                continue
            if stamp == self._stamp and seen:
                seen -= 1
                continue
            fresh.append(line)
            self._at_stamp = self._at_stamp + 1 if stamp == self._stamp else 1
            self._stamp = stamp
        return fresh
