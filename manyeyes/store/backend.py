"""Where objects lie: a folder here, or anything else that can answer the same few questions.

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
from manyeyes.store.layout import INDEX, md5_of

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = 1 << 20
_STALE_SECONDS = 24 * 3600


class Backend(Protocol):
    """Where objects lie. Keys are relative, with slashes: ``files/md5/ab/cdef``."""

    @property
    def where(self) -> str:
        """The place, as a person and ``open_store`` read it: a path, or ``s3://bucket/prefix``."""

    @property
    def parallel(self) -> int:
        """How many objects are worth moving at a time."""

    def size(self, key: str) -> int | None:
        """Return the object's bytes, or None if there is no such object."""

    def read(self, key: str) -> bytes:
        """Return a small object whole; FileNotFoundError if there is none."""

    def write(self, key: str, data: bytes) -> None:
        """Store a small object; a reader sees the old bytes or the new ones, never a part."""

    def put_file(self, source: Path, key: str) -> FileEntry:
        """Copy a file in and return what was read; it is stored only if its md5 is the key's."""

    def get_file(self, key: str, target: Path, *, link: bool = False) -> FileEntry:
        """Write the object to ``target`` and return what was written; FileNotFoundError if none.

        With ``link``, ``target`` is only read and may share its bytes with a cache.
        """

    def set_aside(self, key: str) -> None:
        """Take a damaged object out of the way, so that it counts as missing."""


@dataclass(frozen=True)
class LocalBackend:
    """A folder on this machine; the index lies beside it."""

    root: Path

    @property
    def where(self) -> str:
        """The folder's path."""
        return str(self.root)

    @property
    def parallel(self) -> int:
        """One at a time: a disk does not become faster."""
        return 1

    def size(self, key: str) -> int | None:
        """Return the object's bytes, or None if there is no such object."""
        try:
            return self._path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, key: str) -> bytes:
        """Return a small object whole; FileNotFoundError if there is none."""
        return self._path(key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Write beside the objects, sync, and rename."""
        unfinished = self._unfinished()
        try:
            with unfinished.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._path(key).parent.mkdir(parents=True, exist_ok=True)
            unfinished.replace(self._path(key))
        finally:
            unfinished.unlink(missing_ok=True)

    def put_file(self, source: Path, key: str) -> FileEntry:
        """Copy beside the objects, hash on the way, and rename if the bytes deserve the name."""
        unfinished = self._unfinished()
        try:
            entry = copy_file(source, unfinished, sync=True)
            if entry.md5 == md5_of(key):
                unfinished.chmod(0o444)
                self._path(key).parent.mkdir(parents=True, exist_ok=True)
                unfinished.replace(self._path(key))
        finally:
            unfinished.unlink(missing_ok=True)
        return entry

    def get_file(self, key: str, target: Path, *, link: bool = False) -> FileEntry:  # noqa: ARG002
        """Copy an object out, hashing on the way; never a link: a result may be edited."""
        return copy_file(self._path(key), target, sync=False)

    def set_aside(self, key: str) -> None:
        """Move a damaged object to ``damaged/``, where a person can look at it."""
        damaged = self.root / "damaged"
        damaged.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            self._path(key).replace(damaged / f"{md5_of(key)}.{uuid.uuid4().hex[:8]}")

    def _path(self, key: str) -> Path:
        return self.root.parent / key if key.startswith(f"{INDEX}/") else self.root / key

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


def copy_file(source: Path, target: Path, *, sync: bool) -> FileEntry:
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
