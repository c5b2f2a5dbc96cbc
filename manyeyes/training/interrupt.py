"""Stop on request: SIGTERM and SIGINT are noted, and the loop looks after each step."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """Whether someone asked the run to stop."""

    signal_name: str = ""

    def __bool__(self) -> bool:
        """Tell whether a signal came."""
        return bool(self.signal_name)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Note the first signal; a second one of the same kind acts as it did before.

    Signals reach the main thread only, so in another thread nothing is installed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        request.signal_name = signal.Signals(number).name
        signal.signal(number, before[signal.Signals(number)])

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
