"""Doing many transfers at a time, and stopping all of them when one fails.

A thread that waits before it tries again must not outlive the reason for which the others were
stopped (a signal, a damaged object), so waiting is done here, by :func:`pause`, which ends early.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from manyeyes.errors import ManyeyesError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")
_thread = threading.local()


class CancelledError(ManyeyesError):
    """Another transfer of the same group failed first."""


def each(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """Apply ``function`` to every item, ``workers`` at a time, and return the results in order.

    Raises:
        Exception: the first failure, in the order of the items; what has not begun is not begun.
    """
    if workers <= 1 or len(items) <= 1:
        return [function(item) for item in items]
    inherited: threading.Event | None = getattr(_thread, "halt", None)
    halt = inherited or threading.Event()

    def work(item: Item) -> Result:
        _thread.halt = halt
        if halt.is_set():
            raise CancelledError("Cancelled: another transfer failed.")
        return function(item)

    with ThreadPoolExecutor(min(workers, len(items)), thread_name_prefix="store") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            if inherited is None:
                halt.set()
            raise


@contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
    """Let this thread's waiting, and that of those it starts with :func:`each`, end by an event."""
    before: threading.Event | None = getattr(_thread, "halt", None)
    _thread.halt = event
    try:
        yield
    finally:
        _thread.halt = before


def pause(seconds: float) -> None:
    """Wait, unless the group of this thread is stopped.

    Raises:
        CancelledError: it was.
    """
    halt: threading.Event | None = getattr(_thread, "halt", None)
    if halt is None:
        time.sleep(seconds)
    elif halt.wait(seconds):
        raise CancelledError("Cancelled: another transfer failed.")
