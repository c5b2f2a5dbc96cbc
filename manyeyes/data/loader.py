"""The loader: a thread that makes the batches of the next steps while the model works."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from manyeyes.data.batches import Share, collate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from manyeyes.data.batches import Batch, Prepared
    from manyeyes.data.canvases import PixelCache
    from manyeyes.data.packing import Plan

AHEAD = 3
"""Steps the decoding thread may be ahead of the model."""


@dataclass
class BatchLoader:
    """Makes the batches of steps ``start`` to ``stop`` ahead of the model, in one thread."""

    prepared: Prepared
    plan: Plan
    cache: PixelCache
    start: int
    stop: int
    share: Share = field(default_factory=Share)
    data_wait: float = 0.0
    """Seconds the model waited for the last step's batches."""

    def __enter__(self) -> BatchLoader:
        """Start the thread."""
        self._queue: queue.Queue[tuple[Batch, ...] | BaseException] = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the thread."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        """Yield this process's micro-batches of each step.

        Raises:
            UserError: a picture cannot be read or decoded.
        """
        for _ in range(self.start, self.stop):
            began = time.perf_counter()
            item = self._queue.get()
            self.data_wait = time.perf_counter() - began
            if isinstance(item, BaseException):
                raise item
            yield item

    def make(self, step: int) -> tuple[Batch, ...]:
        """Make this process's micro-batches of one step here and now."""
        batches = self.plan.step(step)
        return tuple(self.make_micro(batches[i]) for i in self.plan.places(step, self.share))

    def make_micro(self, indices: Sequence[int]) -> Batch:
        """Make the batch of some samples, given by their indices."""
        samples = [self.prepared.samples[i] for i in indices]
        encoded = [self.prepared.encoded[i] for i in indices]
        canvases = [
            self.cache.get(ref)
            for sample, item in zip(samples, encoded, strict=True)
            for ref in sample.images[: item.num_images]
        ]
        pixels = torch.stack(canvases) if canvases else None
        return collate(samples, encoded, pixels, packed=self.plan.packed)

    def _work(self) -> None:
        # Every failure belongs to the step that needs the batch, so it is raised there.
        try:
            for step in range(self.start, self.stop):
                if self._stopped.is_set():
                    return
                self._queue.put(self.make(step))
        except BaseException as error:  # handed to the training thread
            self._queue.put(error)
