"""Where objects lie: a folder here, or anything else that can answer five questions.

An object appears by rename, after its bytes were hashed on the way in. ``tmp/`` holds what is not
yet an object; what a killed process left there is removed a day later.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from manyeyes.artifact import FileEntry
from manyeyes.store.layout import md5_of

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = 1 << 20
_STALE_SECONDS = 24 * 3600


class Backend(Protocol):
    """Where objects lie. Keys are relative, with slashes: ``files/md5/ab/cdef``."""

    def size(self, key: str) -> int | None:
        """Return the object's bytes, or None if there is no such object."""

    def read(self, key: str) -> bytes:
        """Return a small object whole; FileNotFoundError if there is none."""

    def put_file(self, source: Path, key: str) -> FileEntry:
        """Copy a file in and return what was read; it is stored only if its md5 is the key's."""

    def get_file(self, key: str, target: Path) -> FileEntry:
        """Write the object to ``target`` and return what was written; FileNotFoundError if none."""

    def set_aside(self, key: str) -> None:
        """Take a damaged object out of the way, so that it counts as missing."""


@dataclass(frozen=True)
class LocalBackend:
    """A folder on this machine."""

    root: Path

    def size(self, key: str) -> int | None:
        """Return the object's bytes, or None if there is no such object."""
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, key: str) -> bytes:
        """Return a small object whole; FileNotFoundError if there is none."""
        return (self.root / key).read_bytes()

    def put_file(self, source: Path, key: str) -> FileEntry:
        """Copy beside the objects, hash on the way, and rename if the bytes deserve the name."""
        unfinished = self._unfinished()
        try:
            entry = _copy(source, unfinished, sync=True)
            if entry.md5 == md5_of(key):
                unfinished.chmod(0o444)
                (self.root / key).parent.mkdir(parents=True, exist_ok=True)
                unfinished.replace(self.root / key)
        finally:
            unfinished.unlink(missing_ok=True)
        return entry

    def get_file(self, key: str, target: Path) -> FileEntry:
        """Copy an object out, hashing on the way."""
        return _copy(self.root / key, target, sync=False)

    def set_aside(self, key: str) -> None:
        """Move a damaged object to ``damaged/``, where a person can look at it."""
        damaged = self.root / "damaged"
        damaged.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            (self.root / key).replace(damaged / f"{md5_of(key)}.{uuid.uuid4().hex[:8]}")

    def _unfinished(self) -> Path:
        """Name a new temporary file, and remove those that killed processes left."""
        folder = self.root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            try:
                if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                    old.unlink()
            except FileNotFoundError:
                continue
        return folder / uuid.uuid4().hex


def _copy(source: Path, target: Path, *, sync: bool) -> FileEntry:
    """Copy a file and return size and digests of the bytes that were written."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_BLOCK):
            sha256.update(block)
            md5.update(block)
            size += len(block)
            writer.write(block)
        writer.flush()
        if sync:
            os.fsync(writer.fileno())
    return FileEntry(size=size, sha256=sha256.hexdigest(), md5=md5.hexdigest())
