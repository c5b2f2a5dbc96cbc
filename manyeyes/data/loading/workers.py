"""Processes that decode pictures for a training, in order, whatever their number.

Design decisions:

- torch's ``DataLoader`` does the work: it keeps the order, sends tensors through shared memory, and
  notices a process that died. What it is given is not a dataset but an endless list of jobs: a
  job names the places of a micro-batch's pictures, which is all that a worker needs to know. So no
  worker holds samples, texts or an index, and memory does not grow with the dataset.
- Workers are started by a fork server that has imported torch but never used it: a fork of the
  training itself would inherit the locks of its threads.
- A worker that is killed (by a person, or by the kernel when memory is short) loses nothing: all
  are started again from the job that was not answered; only the third time ends the training.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from manyeyes.data.loading.canvases import Canvases, make_canvases
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.runtime import ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.data.dataset.sample import ImageRef
    from manyeyes.data.loading.canvases import ToCanvas

    Job: TypeAlias = tuple[ImageRef, ...]
    """The pictures of one micro-batch that have to be decoded; may be none."""

Answer = TypeVar("Answer")
AHEAD = 3
"""Jobs that each worker may be ahead of the model."""
LOSSES = 2
"""How often the workers are started again after one of them died."""
MOST = 8
"""Workers that ``None`` asks for at most."""
_DIED = "exited unexpectedly"
"""What torch's error says of a worker that is no more."""


def num_workers(wanted: int | None) -> int:
    """Return how many workers a process of the training has.

    ``None`` takes half of this process's share of the cores, and none at all below four of them:
    there a worker would take from the model the core that it gives.
    """
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    half = cores // ranks.local_world_size() // 2
    return min(MOST, half) if half >= 2 else 0


class Decoding(MapDataset[Canvases | ManyeyesError]):
    """What a worker holds: where the shards are, and how canvases are made."""

    def __init__(self, dataset: Dataset, to_canvas: ToCanvas) -> None:
        self.dataset = dataset
        self.to_canvas = to_canvas

    def __getitem__(self, job: Job) -> Canvases | ManyeyesError:
        """Do a job. An error is an answer, too: torch would put a traceback into its text."""
        try:
            return make_canvases(self.dataset, self.to_canvas, job)
        except UserError as error:
            return UserError(str(error))
        except ManyeyesError as error:
            return ManyeyesError(str(error))


class Workers:
    """Some processes that decode."""

    def __init__(self, decoding: Decoding, num: int, note: Callable[[str], None]) -> None:
        """Start nothing yet.

        Args:
            decoding: what a worker does; it must be possible to pickle it.
            num: workers, at least one.
            note: told when workers were lost and started again.
        """
        self.decoding = decoding
        self.num = num
        self.note = note

    def run(self, jobs: Iterator[Job]) -> Generator[Canvases, None, None]:
        """Yield the canvases of each job, in order; the workers end with this iterator.

        Raises:
            UserError: a shard is missing or cannot be read.
            ManyeyesError: workers died again and again.
        """
        pending: deque[Job] = deque()
        for losses in range(LOSSES + 1):
            # Closed at once: the traceback of an error would keep the workers.
            with closing(self._answers(_Feed(jobs, pending))) as answers:
                try:
                    for answer in answers:
                        if isinstance(answer, ManyeyesError):
                            raise answer
                        yield answer
                        pending.popleft()
                    return
                except RuntimeError as error:
                    if _DIED not in str(error):
                        raise
                except (ConnectionError, EOFError, FileNotFoundError):
                    pass  # it died between its answer and the pictures, which it hands over later
            if losses < LOSSES:
                self.note("a worker that decodes pictures died; all were started again")
        raise ManyeyesError(
            f"Workers that decode pictures died {LOSSES + 1} times: give the training more memory "
            "(in /dev/shm, too), or set workers to a lower number; the same command continues "
            "from the last state."
        )

    def _answers(self, feed: _Feed) -> Generator[Canvases | ManyeyesError, None, None]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        loader: DataLoader[Canvases | ManyeyesError] = DataLoader(
            self.decoding,
            batch_size=None,
            sampler=feed,
            num_workers=self.num,
            collate_fn=_as_it_is,
            worker_init_fn=_begin,
            multiprocessing_context=context,
            prefetch_factor=AHEAD,
            # Its own: torch would draw a seed from the training's random numbers, at any moment.
            generator=torch.Generator(),
        )
        yield from loader


class _Feed:
    """Jobs on their way to the workers, remembered until they are answered."""

    def __init__(self, jobs: Iterator[Job], pending: deque[Job]) -> None:
        self.jobs = jobs
        self.pending = pending

    def __iter__(self) -> Iterator[Job]:
        yield from tuple(self.pending)
        for job in self.jobs:
            self.pending.append(job)
            yield job


def _as_it_is(answer: Answer) -> Answer:
    return answer


def _begin(_number: int) -> None:
    """Leave Ctrl-C to the training, which saves its state and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
