"""What a command does when it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from manyeyes.errors import Interrupted
from manyeyes.runtime import ranks

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_tidily() -> Iterator[None]:
    """End on SIGTERM and SIGHUP as on Ctrl-C, so that what is unfinished is removed on the way.

    What has better to do (a training saves its state) installs its own while it lasts. A second
    signal ends the process at once, and one that the caller ignores (nohup) stays ignored. The
    processes of torchrun are ended by it.
    """
    mine = threading.current_thread() is threading.main_thread() and ranks.world_size() == 1
    numbers = [one for one in SIGNALS if mine and signal.getsignal(one) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted("Stopped.")
