"""Run contenders in turn and take their time.

Each round runs every contender once, and each round begins with another one, so that a machine
that warms up, or is taken away by a neighbour for a while, does not favour whoever comes first.
Wall time decides; the processor seconds of the process and its children stand beside it.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LEAST_SECONDS = 0.1
"""A short function is repeated until it has run for this long."""


@dataclass(frozen=True)
class Cost:
    """What one run cost."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    """Of the process and its children."""
    losses: tuple[float, ...] = ()
    """Of the steps; none where nothing trains."""
    peak_bytes: int = 0
    """Highest use of device memory; 0 where it was not measured."""


def interleave(contenders: Mapping[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """Run all contenders in turn; return each one's costs, one per round."""
    names = list(contenders)
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            costs[name].append(contenders[name]())
    return costs


def timed(function: Callable[[], object]) -> Callable[[], Cost]:
    """Make a contender of a function: called again and again for a moment, then averaged."""

    def run() -> Cost:
        calls = 0
        began, began_cpu = time.perf_counter(), cpu_seconds()
        while True:
            function()
            calls += 1
            elapsed = time.perf_counter() - began
            if elapsed >= LEAST_SECONDS:
                return Cost(elapsed / calls, (cpu_seconds() - began_cpu) / calls)

    return run


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children, living or ended.

    Of the process itself to the nanosecond: the kernel's table of processes counts in hundredths of
    a second, in which a small step costs nothing.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += float(times.user + times.system)
    return total
