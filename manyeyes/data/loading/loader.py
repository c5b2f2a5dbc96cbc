"""The loader: a thread that makes the batches of the next steps while the model works.

Design decisions:

- The thread decodes by itself or has worker processes do it (``workers``); a batch is put together
  here in either case, from canvases in the order of the plan. So batches depend on the plan alone,
  not on the number of workers nor on the step that a run continues from.
- A sample with a picture that cannot be used keeps its place and its length, with a black picture
  and nothing to learn: it adds nothing to the loss of its step, which is the mean over the others.
  Taking it out, or another in its stead, would change lengths, packs, and which processes meet
  the vision modules, all of which every process reads off the plan without asking the others.
  A black picture is a function of the sample, so a resumed run meets the same step again.
- The thread's own operations use one core, or the model's would wait
  (``manyeyes.data.loading.threads``).
- Where all that the encoders make of a batch's pictures is kept (``is_kept``), none is decoded, and
  nobody asks whether they still could be.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from manyeyes.data.loading.batches import Batch, Share, collate
from manyeyes.data.loading.canvases import Canvases
from manyeyes.data.loading.conversation import IGNORED
from manyeyes.data.loading.threads import take_one_core
from manyeyes.data.loading.workers import Decoding, Workers
from manyeyes.errors import UserError
from manyeyes.store.pool import stopped_by

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from types import TracebackType

    from torch import Tensor

    from manyeyes.data.dataset.sample import ImageRef
    from manyeyes.data.loading.batches import Prepared
    from manyeyes.data.loading.canvases import PixelCache
    from manyeyes.data.loading.packing import Plan

AHEAD = 3
"""Steps the decoding thread may be ahead of the model."""
BLACK = hashlib.sha256(b"black").hexdigest()
"""Stands for the sha256 of a picture that could not be used: what is kept by it is of no other."""


@dataclass(frozen=True)
class Made:
    """This process's part of a step."""

    batches: tuple[Batch, ...]
    unusable: Mapping[int, str]
    """Index of each sample with a picture that cannot be used, and why."""


@dataclass
class BatchLoader:
    """Makes the batches of steps ``start`` to ``stop`` ahead of the model, in one thread."""

    prepared: Prepared
    plan: Plan
    cache: PixelCache
    start: int
    stop: int
    share: Share = field(default_factory=Share)
    workers: int = 0
    """Processes that decode; 0 decodes in the thread."""
    note: Callable[[str], None] = lambda _text: None
    """Told what a person should read."""
    is_kept: Callable[[str], bool] = lambda _sha256: False
    """Tells of a picture whether its features are kept, so that it need not be decoded."""
    data_wait: float = 0.0
    """Seconds the model waited for the last step's batches."""
    unusable: Mapping[int, str] = field(default_factory=dict)
    """Of the last step: index of each sample that is there with nothing to learn, and why."""

    def __enter__(self) -> BatchLoader:
        """Start the thread."""
        self._queue: queue.Queue[Made | BaseException] = queue.Queue(AHEAD)
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
        """Stop the thread and its workers."""
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
            UserError: a shard is missing or cannot be read.
            ManyeyesError: workers died again and again.
        """
        for _ in range(self.start, self.stop):
            began = time.perf_counter()
            item = self._queue.get()
            self.data_wait = time.perf_counter() - began
            if isinstance(item, BaseException):
                raise item
            self.unusable = item.unusable
            yield item.batches

    def make(self, step: int) -> tuple[Batch, ...]:
        """Make this process's micro-batches of one step here and now."""
        return tuple(self.make_micro(indices) for indices in self._micro_batches(step))

    def make_micro(self, indices: Sequence[int]) -> Batch:
        """Make the batch of some samples here and now, given by their indices."""
        return self._collate(indices, self.cache.get(self._shown(indices)))[0]

    def decode(self, indices: Sequence[int]) -> Tensor:
        """Decode the pictures of some samples here and now, (number of them, 3, S, S) uint8.

        Raises:
            UserError: one cannot be used.
        """
        canvases = self.cache.get(self._shown(indices))
        for problem in filter(None, canvases.problems):
            raise UserError(problem)
        assert canvases.pixels is not None
        return canvases.pixels

    def _work(self) -> None:
        # Every failure belongs to the step that needs the batch, so it is raised there.
        try:
            take_one_core()
            with stopped_by(self._stopped), closing(self._canvases()) as canvases:
                for step in range(self.start, self.stop):
                    if self._stopped.is_set():
                        return
                    self._queue.put(self._make(step, canvases))
        except BaseException as error:  # handed to the training thread
            self._queue.put(error)

    def _make(self, step: int, canvases: Iterator[Canvases]) -> Made:
        batches, unusable = [], {}
        for indices in self._micro_batches(step):
            batch, found = self._collate(indices, next(canvases))
            batches.append(batch)
            unusable.update(found)
        return Made(tuple(batches), unusable)

    def _canvases(self) -> Generator[Canvases, None, None]:
        """Yield the canvases of each micro-batch, all steps in one row."""
        shown = (
            self._shown(indices)
            for step in range(self.start, self.stop)
            for indices in self._micro_batches(step)
        )
        if not self.workers:
            for refs in shown:
                yield _undecoded(refs) if self._kept(refs) else self.cache.get(refs)
            return
        asked: list[tuple[tuple[ImageRef, ...], tuple[ImageRef, ...] | None]] = []

        def jobs() -> Iterator[tuple[ImageRef, ...]]:
            for refs in shown:
                missing = None if self._kept(refs) else self.cache.missing(refs)
                asked.append((refs, missing))
                yield missing or ()

        decoding = Decoding(self.cache.dataset, self.cache.to_canvas)
        with closing(Workers(decoding, self.workers, self.note).run(jobs())) as answers:
            for made in answers:
                refs, missing = asked.pop(0)
                if missing is None:
                    yield _undecoded(refs)
                else:
                    yield self.cache.join(refs, missing, made)

    def _kept(self, refs: Sequence[ImageRef]) -> bool:
        """Tell whether the features of all of a batch's pictures are kept."""
        return bool(refs) and all(self.is_kept(ref.sha256) for ref in refs)

    def _micro_batches(self, step: int) -> list[tuple[int, ...]]:
        batches = self.plan.step(step)
        return [batches[place] for place in self.plan.places(step, self.share)]

    def _shown(self, indices: Sequence[int]) -> tuple[ImageRef, ...]:
        """Return the pictures of some samples, in the order of their placeholders."""
        kept = self.prepared.encoded.num_images
        return tuple(
            ref for i in indices for ref in self.prepared.samples.shown(i).images[: kept[i]]
        )

    def _collate(self, indices: Sequence[int], canvases: Canvases) -> tuple[Batch, dict[int, str]]:
        """Make a batch; also return the samples that are in it with nothing to learn."""
        samples = [self.prepared.samples.shown(i) for i in indices]
        encoded = [self.prepared.encoded[i] for i in indices]
        problems = iter(canvases.problems)
        unusable = {}
        for place, index in enumerate(indices):
            found = [next(problems) for _ in range(encoded[place].num_images)]
            if any(found):
                unusable[index] = next(filter(None, found))
                nothing = np.full_like(encoded[place].labels, IGNORED)
                encoded[place] = replace(encoded[place], labels=nothing)
        batch = collate(samples, encoded, canvases.pixels, packed=self.plan.packed)
        if unusable:
            pairs = zip(batch.pictures, canvases.problems, strict=True)
            batch = replace(batch, pictures=tuple(BLACK if bad else name for name, bad in pairs))
        return batch, unusable


def _undecoded(refs: Sequence[ImageRef]) -> Canvases:
    """Return the canvases of pictures that nobody needs to see."""
    return Canvases(None, ("",) * len(refs))
