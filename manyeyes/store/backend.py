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

from manyeyes.artifact.manifest import FileEntry, hash_file, is_relative_name
from manyeyes.runtime.disk import write_through
from manyeyes.store.layout import INDEX, md5_of
from manyeyes.store.links import READ_ONLY, share

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
        """Take a file in and return what was read; it is stored only if its md5 is the key's."""

    def get_file(self, key: str, target: Path, *, link: bool = False) -> FileEntry:
        """Bring the object to ``target`` and return what is there; FileNotFoundError if none.

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
        """Give the file a name beside the objects, and the object's if its bytes deserve it.

        It is hashed when it is read-only: what is linked cannot change behind the digest.
        """
        unfinished = self._unfinished()
        try:
            share(source, unfinished)
            unfinished.chmod(READ_ONLY)
            entry = hash_file(unfinished)
            if entry.md5 == md5_of(key):
                write_through(unfinished)
                self._path(key).parent.mkdir(parents=True, exist_ok=True)
                unfinished.replace(self._path(key))
        finally:
            unfinished.unlink(missing_ok=True)
        return entry

    def get_file(self, key: str, target: Path, *, link: bool = False) -> FileEntry:  # noqa: ARG002
        """Share an object, which is read-only, and hash what lies at ``target``."""
        share(self._path(key), target)
        return hash_file(target)

    def set_aside(self, key: str) -> None:
        """Move a damaged object to ``damaged/``, where a person can look at it.

        In a store that can only be read it stays where it is.
        """
        damaged = self.root / "damaged"
        with suppress(OSError):
            damaged.mkdir(exist_ok=True)
            self._path(key).replace(damaged / f"{md5_of(key)}.{uuid.uuid4().hex[:8]}")

    def _path(self, key: str) -> Path:
        """Return an object's file, which lies below the store whatever the key says."""
        if not is_relative_name(key):
            raise ValueError(f"{key!r} leads out of the store")
        return self.root.parent / key if key.startswith(f"{INDEX}/") else self.root / key

    def _unfinished(self) -> Path:
        """Name a new temporary file, and remove those that killed processes left."""
        folder = self.root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            try:
                # Not the time of its bytes: a link has that of the file it was made from.
                if time.time() - old.stat().st_ctime > _STALE_SECONDS:
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
