"""What a device can do at most: the rate of a large matrix product, measured here and now.

A vendor's number is for cards alone, at a clock and a power that a machine may not hold; for a CPU
there is none. So utilisation is told of what this device reached on the best case there is: one
large square product in the type that the stage computes in. The size is doubled until a product
takes long enough to be timed, so that a slow device costs no more of the stage than a fast one.

Beside other programs the product gets less than it could. A training that then does more than
"the most there is" shows that the measurement was disturbed: it is made again, a few times at most,
and what was really done is a lower bound of what can be. So no utilisation is above one.
"""

from __future__ import annotations

import time
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 8192
"""Side of the largest product; two of them and their result take 400 MB in bfloat16."""
LONG_ENOUGH = 0.05
"""Seconds of a product that is not doubled any more: longer than another process interrupts it."""
REPEATS = 3
"""Products whose fastest counts: one alone may have been interrupted."""


AGAIN = 3
"""Times that a disturbed measurement is made again in a process."""


class Peak:
    """The most that a device does, as far as is known."""

    def __init__(self, measure: Callable[[], float]) -> None:
        """Measure it.

        Args:
            measure: returns operations per second.
        """
        self._measure = measure
        self._left = AGAIN
        self.rate = measure()
        """Operations per second; one multiply-add counts two."""

    def share_of(self, rate: float) -> float:
        """Return which share (0 to 1) of the peak a rate is, in operations per second."""
        if rate > self.rate and self._left:
            self._left -= 1
            self.rate = max(self.rate, self._measure())
        self.rate = max(self.rate, rate)
        return rate / self.rate


@lru_cache(maxsize=8)
def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return a device's peak in a type, measured once in a process as long as nothing beats it."""
    return Peak(partial(measured_peak, device, dtype))


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations per second of a matrix product, measured now.

    Takes less than a second on a quiet machine.
    """
    side = 256
    while True:
        seconds = _seconds_of(side, device, dtype)
        if seconds >= LONG_ENOUGH or side >= LARGEST:
            return 2.0 * side**3 / seconds
        side *= 2


def _seconds_of(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds of the fastest of some products of two (side, side) matrices."""
    one = torch.full((side, side), 0.5, device=device, dtype=dtype)
    other = torch.full((side, side), 0.5, device=device, dtype=dtype)
    if device.type == "cuda":
        torch.mm(one, other)  # the first product loads the kernel
    best = float("inf")
    for _ in range(REPEATS):
        _wait_for(device)
        began = time.perf_counter()
        torch.mm(one, other)
        _wait_for(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
