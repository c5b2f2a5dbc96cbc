"""A node's cache of objects: many processes share it, it stays below a limit, it trusts no byte.

Design decisions:

- An object is fetched into ``partial/`` under an exclusive lock of that file, and renamed to
  ``objects/``. A second process that wants it waits for the lock and finds it there. The lock is
  the kernel's: it dies with its process, and the next one continues the partial file.
- An object is hashed every time it is handed out. One that does not have the md5 of its name is
  removed and fetched again; a cache on a bad disk costs time, never a result.
- It is handed out as a hard link where only reading is meant and the file system allows it, else as
  a copy. A link costs no space and says by itself, to every process, that the object is in use.
- When the limit would be passed, the objects used longest ago go, except those in use: linked, or
  locked by a process that is reading them. So the limit is passed by what is in use, and only then.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock

from manyeyes.artifact.manifest import FileEntry, hash_file
from manyeyes.store.backend import copy_file
from manyeyes.store.links import hard_link
from manyeyes.store.transfer import journal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Fill = Callable[[Path], None]

ATTEMPTS = 3
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Cache:
    """A folder of objects by name (their md5)."""

    root: Path
    limit: int | None
    """Bytes; None for no limit."""

    def take(
        self, name: str, size: int, fill: Fill, target: Path, *, link: bool = False
    ) -> FileEntry:
        """Bring an object to ``target``, fetching it if it is not here.

        Args:
            name: the object's md5.
            size: its bytes.
            fill: fetches it into the file it is given, continuing what is there.
            target: where it shall lie; not there yet.
            link: it will only be read: a hard link will do.

        Returns:
            Digests of what lies at ``target``. Its md5 is not ``name`` only if what was fetched
            anew was wrong every time.
        """
        for attempt in range(1, ATTEMPTS + 1):
            with self._present(name, size, fill) as file:
                entry = self._hand_out(file, name, target, link=link)
                if entry.md5 != name:
                    target.unlink()
                    self._object(name).unlink(missing_ok=True)
            if entry.md5 == name or attempt == ATTEMPTS:
                break
        self.trim()
        return entry

    def used(self) -> int:
        """Return the bytes of all objects, whole and partial."""
        return sum(status.st_size for _, status in self._files())

    def trim(self, needed: int = 0) -> None:
        """Remove objects not in use, least recently used first, until ``needed`` bytes fit."""
        if self.limit is None:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / "trim.lock"):
            files = sorted(self._files(), key=lambda file: file[1].st_mtime_ns)
            excess = sum(status.st_size for _, status in files) + needed - self.limit
            for path, status in files:
                if excess <= 0:
                    return
                if status.st_nlink == 1 and _remove_unlocked(path):
                    excess -= status.st_size

    def _object(self, name: str) -> Path:
        return self.root / "objects" / name[:2] / name[2:]

    @contextmanager
    def _present(self, name: str, size: int, fill: Fill) -> Iterator[BinaryIO]:
        """Give an object's open file, fetched if need be, locked against eviction."""
        final, partial = self._object(name), self.root / "partial" / name
        while True:
            with _shared(final) as present:
                if present is not None:
                    yield present
                    return
            with _exclusive(partial) as file:
                if final.exists():
                    partial.unlink(missing_ok=True)
                    continue
                self._drop_stale()
                self.trim(max(0, size - partial.stat().st_size))
                fill(partial)
                final.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(final)
                final.chmod(0o444)
                fcntl.flock(file, fcntl.LOCK_SH)
                yield file
                return

    def _hand_out(self, file: BinaryIO, name: str, target: Path, *, link: bool) -> FileEntry:
        """Link or copy an object that is locked, hashing it."""
        os.utime(file.fileno())
        if link and hard_link(self._object(name), target):
            return hash_file(target)
        return copy_file(self._object(name), target, sync=False)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield objects and partial files; one that vanishes meanwhile is left out."""
        for folder in ("objects", "partial"):
            for path in (self.root / folder).rglob("*"):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    if path.is_file() and not path.name.endswith(".done"):
                        yield path, status

    def _drop_stale(self) -> None:
        """Remove what a process that was killed a day ago had begun and nobody continued."""
        for path in (self.root / "partial").iterdir():
            with suppress(FileNotFoundError):
                old = time.time() - path.stat().st_mtime > _STALE_SECONDS
                if old and not path.name.endswith(".done"):
                    _remove_unlocked(path)


@contextmanager
def _exclusive(path: Path) -> Iterator[BinaryIO]:
    """Hold the lock of a file that is made if need be, and is still the one of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, path):
                continue  # who held the lock renamed or removed it
            yield file
            return


@contextmanager
def _shared(path: Path) -> Iterator[BinaryIO | None]:
    """Hold a file against removal; None if there is no such file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield None
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield file if _is_at(file, path) else None


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_unlocked(path: Path) -> bool:
    """Remove a file unless a process holds its lock; say whether it is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_nlink > 1:
                return False
            path.unlink()
            journal_of(path).unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
