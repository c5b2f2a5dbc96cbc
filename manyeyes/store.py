"""The content store: every artifact once, by content, in DVC's own layout.

Design decisions:

- The layout is DVC 3's: ``files/md5/ab/cdef...`` holds a file under the md5 of its bytes, and a
  directory is a JSON list of ``{md5, relpath}`` under ``<md5>.dir``. A plain ``dvc pull`` of an
  exported pointer therefore works without this package, and a pod needs no git to write it.
- An object appears by rename, and its bytes are hashed while they are copied, in and out: the
  name of an object is always true, and a damaged one is noticed when it is taken, moved aside, and
  is from then on simply not there.
- Bytes are copied, not linked. Two names for one file would let an edit of a result change the
  store behind every other result.
- What to store where is separate from how (:class:`Backend`): a bucket has the same keys.
- ``index/<fingerprint>.json`` beside the store maps a stage's fingerprint to its result. An entry
  counts only while every object behind it is there with the right size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from manyeyes.artifact import (
    MANIFEST,
    FileEntry,
    Manifest,
    atomic_write_json,
    atomic_write_text,
    hash_file,
)
from manyeyes.errors import ManyeyesError

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = ".dir"
_BLOCK = 1 << 20
_STALE_SECONDS = 24 * 3600
"""A temporary file this old was left by a killed process."""


class DamagedObjectError(ManyeyesError):
    """An object of the store is missing, or its bytes are not what its name says."""


class Member(BaseModel):
    """One file of a stored directory, as DVC writes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    md5: str
    relpath: str


class Entry(BaseModel):
    """What the index knows of a stage's result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dir_id: str
    """DVC's name of the directory: ``<md5>.dir``."""
    digest: str
    """Content digest of the artifact's manifest."""


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
            if entry.md5 == _md5_of(key):
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
        (self.root / key).replace(damaged / f"{_md5_of(key)}.{uuid.uuid4().hex[:8]}")

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


class Store:
    """Artifacts by content, and the index from fingerprints to them. Safe for many processes."""

    def __init__(self, root: Path, backend: Backend | None = None) -> None:
        """Name the store in folder ``root``; the index and the locks lie beside it."""
        self.root = root
        self.backend: Backend = backend or LocalBackend(root)
        self._index = root.with_name("index")
        self._locks = root.with_name("locks")

    def put(self, directory: Path, manifest: Manifest) -> str:
        """Store a finished artifact; what is there already is not copied again.

        Returns:
            DVC's name of the directory, ``<md5>.dir``.

        Raises:
            DamagedObjectError: a file no longer has the bytes its manifest lists.
        """
        entries = {**manifest.files, MANIFEST: hash_file(directory / MANIFEST)}
        for name, entry in entries.items():
            self._put_object(directory / name, entry)
        members = [Member(md5=entry.md5, relpath=name) for name, entry in entries.items()]
        return self._put_tree(members)

    def checkout(self, dir_id: str, out: Path) -> None:
        """Write a stored artifact to ``out``, in place of what was there.

        The files are written and checked beside ``out`` and renamed, so that ``out`` is never half
        written; of two processes with one ``out``, the later wins.

        Raises:
            DamagedObjectError: an object is missing or damaged; it is set aside, ``out`` is as before.
        """
        members = self._members(dir_id)
        with self._workplace(out) as work:
            written = {member.relpath: self._take(member, work) for member in members}
            self._check_manifest(work, written)
            _replace_directory(work, out)

    def fetch(self, fingerprint: str, out: Path) -> Entry | None:
        """Look up and check out in one step; a damaged result is a missing one."""
        entry = self.lookup(fingerprint)
        if entry is None:
            return None
        try:
            self.checkout(entry.dir_id, out)
        except DamagedObjectError:
            return None
        return entry

    def remember(self, fingerprint: str, dir_id: str, digest: str) -> None:
        """Write down which content a fingerprint led to."""
        entry = Entry(dir_id=dir_id, digest=digest)
        atomic_write_json(self._index / f"{fingerprint}.json", entry.model_dump())

    def lookup(self, fingerprint: str) -> Entry | None:
        """Return the result of a fingerprint, or None if any of its objects is not there.

        Sizes are compared here; the bytes are, when they are taken.
        """
        try:
            text = (self._index / f"{fingerprint}.json").read_text(encoding="utf-8")
            entry = Entry.model_validate_json(text)
            return entry if self._is_whole(entry.dir_id) else None
        except (FileNotFoundError, ValidationError, DamagedObjectError):
            return None

    def export_pointer(self, dir_id: str, out: Path) -> Path:
        """Write ``<out>.dvc``, from which a plain ``dvc pull`` brings ``out`` back byte for byte.

        Raises:
            DamagedObjectError: the directory is not whole in the store.
        """
        members = self._members(dir_id)
        size = sum(self._size(member) for member in members)
        pointer = out.with_name(f"{out.name}.dvc")
        # JSON text is YAML text, and quotes any name safely.
        lines = [f"- md5: {dir_id}", f"  size: {size}", f"  nfiles: {len(members)}"]
        lines += ["  hash: md5", f"  path: {json.dumps(out.name)}"]
        atomic_write_text(pointer, "\n".join(["outs:", *lines]) + "\n")
        return pointer

    def _put_object(self, source: Path, entry: FileEntry) -> None:
        if self.backend.size(object_key(entry.md5)) == entry.size:
            return
        stored = self.backend.put_file(source, object_key(entry.md5))
        if stored.md5 != entry.md5:
            raise DamagedObjectError(
                f"{source} changed while it was stored: its md5 is {stored.md5}, but the manifest "
                f"says {entry.md5}; run its stage again."
            )

    def _put_tree(self, members: list[Member]) -> str:
        data = tree_bytes(members)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        dir_id = f"{md5}{_DIRECTORY}"
        if self.backend.size(object_key(dir_id)) != len(data):
            self.root.mkdir(parents=True, exist_ok=True)
            source = self.root / f"{uuid.uuid4().hex}{_DIRECTORY}"
            try:
                source.write_bytes(data)
                self.backend.put_file(source, object_key(dir_id))
            finally:
                source.unlink(missing_ok=True)
        return dir_id

    def _members(self, dir_id: str) -> list[Member]:
        """Read a stored directory's list, refusing names that lead out of the directory."""
        data = self._read(dir_id)
        try:
            members = TypeAdapter(list[Member]).validate_json(data)
        except ValidationError:
            raise self._damaged(dir_id, "is not a list of files") from None
        for member in members:
            path = PurePosixPath(member.relpath)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise self._damaged(dir_id, f"lists the file {member.relpath!r}")
        return members

    def _read(self, name: str) -> bytes:
        try:
            data = self.backend.read(object_key(name))
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(name) from None
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != name.removesuffix(_DIRECTORY):
            raise self._damaged(name, "does not have the md5 of its name")
        return data

    def _take(self, member: Member, work: Path) -> FileEntry:
        target = work / member.relpath
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            written = self.backend.get_file(object_key(member.md5), target)
        except FileNotFoundError:
            raise self._missing(member.md5) from None
        if written.md5 != member.md5:
            raise self._damaged(member.md5, "does not have the md5 of its name")
        return written

    def _check_manifest(self, work: Path, written: dict[str, FileEntry]) -> None:
        """Compare sha256, which md5 is no substitute for, with the artifact's own manifest."""
        if MANIFEST not in written:
            return
        for name, entry in _manifest_files((work / MANIFEST).read_bytes()).items():
            if name not in written:
                raise DamagedObjectError(
                    f"The stored directory lacks {name}, which its manifest lists."
                )
            if written[name].sha256 != entry.sha256:
                raise self._damaged(entry.md5, "does not have the sha256 in the manifest")

    def _is_whole(self, dir_id: str) -> bool:
        """Say whether every file of a directory is there, with the size its manifest lists."""
        members = {member.relpath: member.md5 for member in self._members(dir_id)}
        sizes = {name: self.backend.size(object_key(md5)) for name, md5 in members.items()}
        files = _manifest_files(self._read(members[MANIFEST])) if MANIFEST in members else {}
        present = all(size is not None for size in sizes.values())
        return present and all(sizes.get(name) == entry.size for name, entry in files.items())

    def _size(self, member: Member) -> int:
        size = self.backend.size(object_key(member.md5))
        if size is None:
            raise self._missing(member.md5)
        return size

    def _missing(self, name: str) -> DamagedObjectError:
        return DamagedObjectError(
            f"{object_key(name)} is not in the content store {self.root}; "
            "run the same command again to make it, or fetch it with 'dvc pull'."
        )

    def _damaged(self, name: str, what: str) -> DamagedObjectError:
        self.backend.set_aside(object_key(name))
        return DamagedObjectError(
            f"{object_key(name)} in the content store {self.root} {what}; it was set aside, "
            "run the same command again to make it anew."
        )

    @contextmanager
    def _workplace(self, out: Path) -> Iterator[Path]:
        """Give an empty directory beside ``out``, one at a time; a killed one is cleared."""
        key = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:32]
        work = out.with_name(f".{out.name}.unfinished")
        self._locks.mkdir(parents=True, exist_ok=True)
        with FileLock(self._locks / f"checkout-{key}.lock"):
            _remove(work)
            work.mkdir(parents=True)
            try:
                yield work
            finally:
                _remove(work)


def object_key(name: str) -> str:
    """Return where DVC keeps the object called ``name`` (an md5, or ``<md5>.dir``)."""
    return f"files/md5/{name[:2]}/{name[2:]}"


def tree_bytes(members: list[Member]) -> bytes:
    """Write a directory's list exactly as DVC 3 does: its md5 is the directory's name."""
    ordered = sorted((member.model_dump() for member in members), key=lambda row: row["relpath"])
    return json.dumps(ordered, sort_keys=True).encode()


def _md5_of(key: str) -> str:
    folder, name = key.split("/")[-2:]
    return (folder + name).removesuffix(_DIRECTORY)


def _manifest_files(data: bytes) -> dict[str, FileEntry]:
    try:
        return Manifest.model_validate_json(data).files
    except ValidationError:
        raise DamagedObjectError(f"The stored {MANIFEST} cannot be read by this version.") from None


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


def _replace_directory(work: Path, out: Path) -> None:
    """Put ``work`` in the place of ``out``; a kill in between leaves no ``out``, never a part."""
    old = out.with_name(f".{out.name}.old")
    _remove(old)
    if out.exists():
        out.rename(old)
    work.rename(out)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
