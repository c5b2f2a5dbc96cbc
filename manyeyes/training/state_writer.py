"""Writes states, beside the training where that costs nothing.

On an accelerator the tensors have to be copied to main memory before they can be written, so
training goes on with the copy made and a thread writes it. On a CPU the copy would be extra memory
(12 bytes per trained parameter) and the thread would take the time from the training itself, so
there a state is written in place. One state is written at a time, and whoever ends waits for it; an
error of the thread comes out at the next state or at the end.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from manyeyes.training.checkpoint import State, save_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


class StateWriter:
    """Writes the states of one run."""

    def __init__(self, out: Path, identity: str, *, beside: bool) -> None:
        """Write into ``out``.

        Args:
            out: the stage's directory.
            identity: of the run.
            beside: whether a thread writes while training goes on.
        """
        self.out = out
        self.identity = identity
        self.beside = beside
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: State) -> None:
        """Write a state, or begin to.

        Raises:
            UserError: the disk is full, now or when the state before was written.
            ManyeyesError: the folder cannot be written, likewise.
        """
        self.wait()
        if not self.beside:
            save_state(self.out, state, self.identity)
            return
        copy = replace(state, weights=_copied(state.weights), optimizer=_copied(state.optimizer))
        self._thread = threading.Thread(target=self._write, args=(copy,), name="state")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last state is on disk.

        Raises:
            UserError, ManyeyesError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, state: State) -> None:
        try:
            save_state(self.out, state, self.identity)
        except Exception as error:
            self._error = error


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in main memory: what they are of goes on changing."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
