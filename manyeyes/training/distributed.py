"""The processes that train together: how they agree, and how one learns that another is lost.

Design decisions:

- What processes tell each other beside gradients (losses, stop signals, what the runner decided)
  goes over a gloo group and a key-value store, never over the accelerator's own group: both are
  free while the accelerator works, and both give up after ``stall_seconds`` with an exception.
- A process that fails leaves its text and exit code in the store before it ends. The others, whose
  next exchange breaks, look there, so that every process ends with the same code and process 0
  says why.
- A process that is silent is named: those that gave up waiting say so in the store, and whoever
  said nothing is the one that stalled. torchrun then ends it with the rest.
- Process 0 leads: it alone takes locks, reads and writes states and artifacts.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from manyeyes.errors import Followed, ManyeyesError
from manyeyes.runtime import ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

STALL = "MANYEYES_STALL_SECONDS"
"""Names how long a process may keep the others waiting."""
STALL_SECONDS = 1800.0
_GRACE = 5.0
"""Seconds in which all processes that are alive notice that an exchange broke."""
_SIGNS = ("gloo", "NCCL", "Connection", "Timed out", "timed out", "Broken pipe", "recv", "Socket")
"""What an error says that comes from an exchange and not from this process's own work."""


@dataclass(frozen=True)
class World:
    """The processes of one training, seen from one of them."""

    rank: int = 0
    size: int = 1
    store: Store | None = None
    control: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process reads and writes for all."""
        return self.rank == 0

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Return every process's values, by rank; all give equally many.

        Raises:
            ManyeyesError: a process failed or stalled.
        """
        mine = torch.tensor(values, dtype=torch.float64)
        if self.size == 1:
            return [mine.tolist()]
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        with self.watching():
            dist.all_gather(everyone, mine, group=self.control)
        return [theirs.tolist() for theirs in everyone]

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Give every process the tensor of process 0, in place.

        Raises:
            ManyeyesError: a process failed or stalled.
        """
        if self.size > 1:
            with self.watching():
                dist.broadcast(tensor, src=0, group=self.control)
        return tensor

    def tell(self, key: str, value: object) -> None:
        """Leave a JSON value for the other processes."""
        if self.store is not None:
            self.store.set(key, json.dumps(value))

    def hear(self, *keys: str) -> tuple[str, object]:
        """Wait until another process has told one of ``keys``; return it and its value.

        There is no time limit: process 0 may wait for another run that makes the same result.

        Raises:
            Followed: process 0 failed instead.
        """
        assert self.store is not None
        while True:
            try:
                found = next((key for key in keys if self.store.check([key])), None)
                if found:
                    return found, json.loads(self.store.get(found))
                failure = self._failure_of(0)
            except RuntimeError:
                raise Followed("Process 0 of the training is gone.", 1) from None
            if failure:
                raise failure
            time.sleep(0.05)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Turn the error of a broken exchange into one that says which process broke it.

        Raises:
            Followed: another process failed; with its exit code.
            ManyeyesError: another process is gone or stalled.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(sign in str(error) for sign in _SIGNS):
                raise
            raise self._lost() from error

    def _lost(self) -> ManyeyesError:
        """Find out who broke an exchange."""
        try:
            self.tell(f"waiting/{self.rank}", 1)
            deadline = time.monotonic() + _GRACE
            others = [rank for rank in range(self.size) if rank != self.rank]
            while True:
                for rank in others:
                    failure = self._failure_of(rank)
                    if failure:
                        return failure
                silent = [rank for rank in others if not self._has(f"waiting/{rank}")]
                if not silent or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        except RuntimeError:
            return Followed("The process that leads the training is gone.", ManyeyesError.exit_code)
        names = f"process {', '.join(map(str, silent))}" if silent else "a process"
        return ManyeyesError(
            f"Training lost {names} of {self.size}: it is gone, or did not answer for "
            f"{stall_seconds():g} s ({STALL}); the same command continues from the last state."
        )

    def _has(self, key: str) -> bool:
        assert self.store is not None
        return bool(self.store.check([key]))

    def _failure_of(self, rank: int) -> Followed | None:
        if not self._has(f"failed/{rank}"):
            return None
        assert self.store is not None
        told = json.loads(self.store.get(f"failed/{rank}"))
        return Followed(f"Process {rank} of the training: {told['text']}", int(told["code"]))


def stall_seconds() -> float:
    """Return how long a process may keep the others waiting, in seconds."""
    return float(os.environ.get(STALL, STALL_SECONDS))


_present: list[World] = []
"""The world this process is in, or nothing; torch knows one group of all processes, too."""


@contextmanager
def joined(*, needs_group: bool = True) -> Iterator[World]:
    """Join the other processes until the block ends; inside another such block, do nothing.

    Args:
        needs_group: make torch's process group for a lonely process, too (DeepSpeed asks for one).

    Raises:
        ManyeyesError: the others did not come.
    """
    if _present:
        yield _present[0]
        return
    world = _join(needs_group=needs_group)
    _present.append(world)
    try:
        yield world
    except BaseException as error:
        if world.size > 1 and not isinstance(error, Followed):
            _tell_failure(world, error)
        raise
    finally:
        _present.clear()
        _leave(world)
        if dist.is_initialized():
            dist.destroy_process_group()


def _leave(world: World) -> None:
    """Let process 0, which may keep the store, end last: what it told must still be heard."""
    try:
        world.tell(f"left/{world.rank}", 1)
        deadline = time.monotonic() + _GRACE
        others = [f"left/{rank}" for rank in range(1, world.size)]
        while world.leads and others and time.monotonic() < deadline:
            assert world.store is not None
            if world.store.check(others):
                return
            time.sleep(0.02)
    except RuntimeError:
        return


def _join(*, needs_group: bool) -> World:
    if ranks.world_size() == 1 and not needs_group:
        return World()
    timeout = timedelta(seconds=stall_seconds())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank())
    if ranks.world_size() == 1:
        alone: Store = dist.HashStore()  # type: ignore[attr-defined]  # torch's stub leaves it out
        dist.init_process_group(backend, store=alone, rank=0, world_size=1, timeout=timeout)
        return World(store=alone)
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
        group_store = PrefixStore("group", store)
        dist.init_process_group(
            backend, store=group_store, rank=rank, world_size=size, timeout=timeout
        )
        control = dist.new_group(backend="gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise ManyeyesError(
            f"Process {ranks.rank()} could not join the {ranks.world_size()} of the training "
            f"({str(error).splitlines()[0]}); start them all with torchrun."
        ) from error
    return World(rank, size, store, control)


def _tell_failure(world: World, error: BaseException) -> None:
    """Leave text and exit code for the others; a store that is gone has no reader either."""
    known = isinstance(error, ManyeyesError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    code = error.exit_code if isinstance(error, ManyeyesError) else ManyeyesError.exit_code
    try:
        world.tell(f"failed/{world.rank}", {"text": text, "code": code})
    except RuntimeError:
        return
