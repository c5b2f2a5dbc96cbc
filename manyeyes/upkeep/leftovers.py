"""What killed and old runs left beside the store: provably ours, and of no use to anybody.

Unfinished work is of use: the same command continues it. It counts as left over when nobody touched
it for ``days``.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manyeyes.runtime.disk import size_of
from manyeyes.runtime.home import INPUTS, OWED, home
from manyeyes.runtime.locks import TEMPORARY, is_held, stale
from manyeyes.tracking.owed import safe_name

DAY = 24 * 3600.0
DAYS = 30.0


@dataclass(frozen=True)
class Leftover:
    """A file or a folder that may go."""

    path: Path
    what: str
    size: int


def leftovers(days: float = DAYS) -> list[Leftover]:
    """Return what may go, whoever holds objects of the store.

    Args:
        days: for how long unfinished work and the records of runs are kept.

    Raises:
        OSError: the file system does not say who holds a lock.
    """
    found = [
        *_stale_scratch(),
        *_files(home() / "store/tmp", "of a write that was killed", 1.0),
        *_files(home() / "store/damaged", "damaged objects, set aside", 0.0),
        *_unfinished(days),
        *_locks(),
    ]
    return sorted(found, key=lambda left: (left.what, left.path))


def _stale_scratch() -> Iterator[Leftover]:
    for parent, prefix in ((Path(tempfile.gettempdir()), TEMPORARY), (home() / INPUTS, "")):
        for path in stale(parent, prefix):
            yield Leftover(path, "temporary files of a killed process", size_of(path))


def _files(folder: Path, what: str, days: float) -> Iterator[Leftover]:
    for path in folder.glob("*"):
        status = path.lstat()
        if time.time() - status.st_ctime >= days * DAY:
            yield Leftover(path, what, status.st_size if status.st_nlink == 1 else 0)


def _unfinished(days: float) -> Iterator[Leftover]:
    """Work, pointers and records that nobody touched for long and that no lock covers."""
    locks = home() / "locks"
    for path in (home() / "work").glob("*"):
        if _untouched(path, days) and not is_held(locks / f"{path.name}.lock"):
            yield Leftover(path, "a stage that nobody continued", size_of(path))
    for folder, what in (("kfp", "a run that nobody continued"), ("runs", "records of an old run")):
        for path in (home() / folder).glob("*"):
            if is_held(locks / f"run-{path.name}.lock"):
                continue
            empty = folder == "kfp" and not any(path.rglob("*.json"))
            if (_untouched(path, days) and not _is_owed(path.name)) or empty:
                yield Leftover(path, what, size_of(path))


def _is_owed(run: str) -> bool:
    """Say whether the tracker has not been told all of a run."""
    return any(path.name == safe_name(run) for path in (home() / OWED).rglob("*"))


def _locks() -> Iterator[Leftover]:
    for path in (home() / "locks").glob("*.lock"):
        if not is_held(path):
            yield Leftover(path, "locks that nobody holds", 0)


def _untouched(path: Path, days: float) -> bool:
    """Say whether nothing below a path was written for so many days."""
    newest = path.lstat().st_mtime
    for place, _, names in os.walk(path):
        for name in names:
            try:
                newest = max(newest, os.lstat(os.path.join(place, name)).st_mtime)
            except OSError:
                continue
    return time.time() - newest >= days * DAY
