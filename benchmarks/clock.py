"""Run contenders in turn and take their time.

Each round runs every contender once, and each round begins with another one, so that a machine
that warms up, or is taken away by a neighbour for a while, does not favour whoever comes first.
Wall time decides; the processor seconds of the process and its children stand beside it.
"""

from __future__ import annotations

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
    """Return the processor time of this process and of its children, living or ended."""
    process = psutil.Process()
    times = process.cpu_times()
    total = _own(process) + float(times.children_user + times.children_system)
    for child in process.children(recursive=True):
        try:
            total += _own(child)
        except psutil.Error:
            continue
    return total


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
