"""A training that shares its cores with other programs takes its share of them, and no less.

Torch splits an operation over a team of threads, and a thread that is done waits for the others. On
a quiet machine the quickest way to wait is to spin, and libgomp does so for several milliseconds.
Beside other programs that is fatal: the thread that is waited for has no core, because those that
spin keep theirs. A step of a small model then takes up to fifty times as long (docs/log.md,
2026-12-01). Sleeping at once is no way out either, for on a quiet machine that costs a fifth.

So the team spins while the cores are its own, and sleeps while they are not. libgomp has a switch
for that: where all teams of a process together have more threads than there are cores, it hardly
spins (GOMP_SPINCOUNT in its manual). A spare team, which does nothing, turns the switch on; its end
turns it off. The team that computes keeps its number of threads, so every sum stays what it was.

Where there are many others, sleeping is not enough: the team's threads come to a core one after the
other, and each operation waits for the last of them. Then the team moves together, to as many cores
as it can fill and one more: threads that take turns on one core wait for nobody on another. How
much it can fill, it sees from how long its threads waited for a core (``schedstat``).
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from threadpoolctl import threadpool_info

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    Parallel = Callable[[int], object]
    """Runs a team of so many threads once."""

WATCH_SECONDS = 0.5
"""Time between two looks at the cores."""
TOLERATED = 0.25
"""Cores that others may use beyond what the team leaves them, before it sleeps instead."""
SPARE = 0.25
"""Of a core: a team that fills nearly one may have two."""
OWN_WISH = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Who sets one of these has decided how threads wait."""


@dataclass(frozen=True)
class Use:
    """Processor seconds since the machine and this process started."""

    at: float
    """Time of the look, in seconds."""
    everybody: float
    """Of all programs, on the cores that this process may use."""
    own: float
    """Of this process, all threads."""


def look(allowed: Collection[int]) -> Use:
    """Look at the cores that this process may use."""
    everybody = 0.0
    for core, times in enumerate(psutil.cpu_times(percpu=True)):
        if core in allowed:
            everybody += times.user + times.nice + times.system + times.irq + times.softirq
    return Use(time.monotonic(), everybody, time.process_time())


def cores_of_others(before: Use, now: Use) -> float:
    """Return how many cores other programs used between two looks."""
    used = (now.everybody - before.everybody) - (now.own - before.own)
    return max(0.0, used / max(now.at - before.at, 1e-3))


@dataclass(frozen=True)
class Turns:
    """What the threads of this process got of the cores since each began, in seconds."""

    ran: float
    waited: float
    """For a core, being ready."""


def turns() -> Turns:
    """Return the turns of all threads of this process; those that ended are left out.

    Raises:
        OSError: the kernel keeps no count.
    """
    ran = waited = 0
    for thread in _threads():
        with suppress(FileNotFoundError, ProcessLookupError):
            text = Path("/proc/self/task", thread, "schedstat").read_text(encoding="ascii")
            ran, waited = ran + int(text.split()[0]), waited + int(text.split()[1])
    return Turns(ran / 1e9, waited / 1e9)


def cores_filled(before: Turns, now: Turns, team: int) -> float:
    """Return how many cores a team can fill, going by how often its threads had to wait."""
    ran, waited = max(0.0, now.ran - before.ran), max(0.0, now.waited - before.waited)
    return team * ran / (ran + waited) if ran else float(team)


def _threads() -> list[str]:
    return os.listdir("/proc/self/task")


class Cores:
    """The cores that this process may use, and those that its team is kept to."""

    def __init__(self) -> None:
        """Take the present ones as allowed."""
        self.allowed = sorted(os.sched_getaffinity(0))
        self._filled: float | None = None
        self._before: Turns | None = None
        self.kept = len(self.allowed)
        """How many the team is kept to."""

    def move_together(self, team: int) -> None:
        """Keep the team to as many cores as it can fill and one more; looked at anew each time."""
        try:
            now = turns()
        except OSError:
            return
        if self._before is not None:
            filled = cores_filled(self._before, now, team)
            # One look alone is too short to tell.
            self._filled = filled if self._filled is None else (self._filled + filled) / 2
            self._keep(min(len(self.allowed), math.floor(self._filled + SPARE) + 1))
        self._before = now

    def spread(self) -> None:
        """Let the team use all cores again."""
        self._before = self._filled = None
        self._keep(len(self.allowed))

    def _keep(self, number: int) -> None:
        if number == self.kept:
            return
        for thread in _threads():
            with suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread), self.allowed[:number])
        self.kept = number


def is_crowded(others: float, team: int, cores: int) -> bool:
    """Tell whether a team and the others want more cores than there are."""
    return others + team > cores + TOLERATED


class SpareTeam:
    """A thread with an idle team of its own: while it is there, no team spins for long."""

    def __init__(self, parallel: Parallel, size: int) -> None:
        """Take ``size`` threads, the leading one among them."""
        self._parallel, self._size = parallel, size
        self._begun, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="spare team", daemon=True)
        self._thread.start()
        self._begun.wait()

    def _work(self) -> None:
        self._parallel(self._size)
        self._begun.set()
        self._over.wait()  # a team lives as long as the thread that leads it

    def end(self) -> None:
        """Give the threads back."""
        self._over.set()
        self._thread.join()


def parallel_of_torch() -> Parallel | None:
    """Return what starts a team of torch's libgomp that does nothing; None with another OpenMP."""
    import torch

    if not any(found["prefix"] == "libgomp" for found in threadpool_info()):
        return None
    try:
        # Looked up by way of torch, as there may be several libgomps in a process.
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        start = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    # The team's body: a function that takes no notice of the argument it is called with.
    nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
    start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    start.restype = None
    return lambda size: start(nothing, None, size, 0)


class Watcher:
    """Looks at the cores again and again, and has the team sleep or spin accordingly."""

    def __init__(
        self,
        parallel: Parallel,
        team: int,
        cores: int,
        look: Callable[[], Use],
        place: Cores | None = None,
    ) -> None:
        """Watch for a team.

        Args:
            parallel: starts a team.
            team: threads of the team that computes.
            cores: that this process may use.
            look: reads what was used so far.
            place: where the team computes; None leaves it there.
        """
        self._parallel, self._team, self._cores, self._look = parallel, team, cores, look
        self._place = place
        self._before = look()
        self._spare: SpareTeam | None = None

    @property
    def shares(self) -> bool:
        """Whether the team sleeps where it would spin."""
        return self._spare is not None

    def update(self) -> None:
        """Look, and change what has to change."""
        now = self._look()
        others = cores_of_others(self._before, now)
        self._before = now
        if is_crowded(others, self._team, self._cores):
            if self._spare is None:
                # Together one thread more than there are cores.
                size = max(2, self._cores - self._team + 2)
                self._spare = SpareTeam(self._parallel, size)
            if self._place is not None:
                self._place.move_together(self._team)
        else:
            self.end()

    def end(self) -> None:
        """Let the team spin, on all cores."""
        if self._place is not None:
            self._place.spread()
        if self._spare is not None:
            self._spare.end()
            self._spare = None


@contextmanager
def cores_shared() -> Iterator[None]:
    """Have torch's threads take their share of the cores, and no more, while this is open.

    Nothing is done where a single thread computes, where OpenMP is not libgomp, and where the
    environment says how threads are to wait.
    """
    import torch

    team = torch.get_num_threads()
    watcher = _watcher(team) if _is_ours_to_decide(team) else None
    if watcher is None:
        yield
        return
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(WATCH_SECONDS):
            watcher.update()
        watcher.end()

    thread = threading.Thread(target=watch, name="cpu sharing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _watcher(team: int) -> Watcher | None:
    """Return who watches for a team; None where nobody can."""
    parallel = parallel_of_torch()
    if parallel is None:
        return None
    try:
        place = Cores()
        return Watcher(parallel, team, len(place.allowed), lambda: look(place.allowed), place)
    except OSError:  # no /proc
        return None


def _is_ours_to_decide(team: int) -> bool:
    return sys.platform == "linux" and team > 1 and not any(map(os.environ.get, OWN_WISH))
