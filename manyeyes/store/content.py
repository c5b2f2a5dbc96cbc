"""The store itself: put, look up, check out, export."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from manyeyes.artifact.destination import beside, claim_pointer, put
from manyeyes.artifact.manifest import (
    MANIFEST,
    REMOTE,
    FileEntry,
    Manifest,
    Sha256,
    atomic_write_text,
    hash_file,
    is_detached,
    is_relative_name,
    parse_manifest,
)
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.store import places
from manyeyes.store.backend import Backend, LocalBackend
from manyeyes.store.dvc import cache_of
from manyeyes.store.layout import (
    DIRECTORY_SUFFIX,
    DirectoryId,
    Member,
    digest_key,
    index_key,
    name_key,
    object_key,
    tree_bytes,
)
from manyeyes.store.links import same_file
from manyeyes.store.pool import each
from manyeyes.store.ranges import RemoteFile, RemoteFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")


class DamagedObjectError(ManyeyesError):
    """An object of the store is missing, or its bytes are not what its name says."""


class IndexRecord(BaseModel):
    """What the index says of a fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dir_id: DirectoryId
    digest: Sha256


@dataclass(frozen=True)
class Entry:
    """A stored artifact, whole at the time it was looked up."""

    dir_id: str
    """DVC's name of the directory: ``<md5>.dir``."""
    digest: str
    """Content digest of the artifact's manifest."""
    size: int
    """Bytes of all files, the manifest included."""
    num_files: int
    details: dict[str, JsonValue]
    """What the manifest says of the result."""


class Store:
    """Artifacts by content, and the index from fingerprints to them. Safe for many processes."""

    def __init__(self, root: Path, backend: Backend | None = None) -> None:
        """Name the store in folder ``root``, or in ``backend``; the locks lie beside ``root``."""
        self.root = root
        self.backend: Backend = backend or LocalBackend(root)
        self._locks = root.with_name("locks")

    @property
    def where(self) -> str:
        """The place: a path, or ``s3://bucket/prefix``."""
        return self.backend.where

    @property
    def is_remote(self) -> bool:
        """Whether other machines have the same store."""
        return not isinstance(self.backend, LocalBackend)

    def put(self, directory: Path, manifest: Manifest) -> str:
        """Store a finished artifact; what is there already is not copied again.

        Returns:
            DVC's name of the directory, ``<md5>.dir``.

        Raises:
            DamagedObjectError: a file no longer has the bytes its manifest lists.
        """
        entries = {**manifest.files, MANIFEST: hash_file(directory / MANIFEST)}
        unique = {entry.md5: (directory / name, entry) for name, entry in entries.items()}
        self._each(lambda pair: self._put_object(*pair), list(unique.values()))
        members = [Member(md5=entry.md5, relpath=name) for name, entry in entries.items()]
        return self._put_tree(members)

    def checkout(self, dir_id: str, out: Path, *, link: bool = False, leave: str = "") -> None:
        """Write a stored artifact to ``out``, in place of what was there.

        The files are written and checked beside ``out`` and renamed, so that ``out`` is never half
        written; of two processes with one ``out``, the later wins. What lies at ``out`` must be a
        result (``destination``).

        Args:
            dir_id: DVC's name of the directory.
            out: where the artifact shall lie.
            link: it will only be read; files may be links into this node's cache.
            leave: files whose path starts so stay in the store; ``store.ranges`` reads them.
                They are asked for their size, and no more.

        Raises:
            DamagedObjectError: an object is missing or damaged; ``out`` is as it was.
            UserError: ``out`` belongs to somebody; it is as it was.
        """
        listed = self._members(dir_id)
        left = [member for member in listed if leave and member.relpath.startswith(leave)]
        members = [member for member in listed if member not in left]
        with beside(out) as work:
            sizes = self._each(lambda member: self._size(member.md5), left)
            taken = self._each(lambda member: self._take(member, work, link=link), members)
            written = {m.relpath: entry for m, entry in zip(members, taken, strict=True)}
            there = {member.relpath: size for member, size in zip(left, sizes, strict=True)}
            self._check_manifest(work, written, there)
            if left:
                files = {m.relpath: RemoteFile(md5=m.md5, size=there[m.relpath]) for m in left}
                RemoteFiles(store=self.where, files=files).write(work)
            put(work, out)

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
        """Write down which content a fingerprint led to, and where a content digest is found.

        A result without a fingerprint (no recipe made it) is found by its digest alone.
        """
        data = IndexRecord(dir_id=dir_id, digest=digest).model_dump_json(indent=2).encode() + b"\n"
        self.backend.write(digest_key(digest), data)
        if fingerprint:
            self.backend.write(index_key(fingerprint), data)

    def lookup(self, fingerprint: str) -> Entry | None:
        """Return the result of a fingerprint, or None if any of its objects is not there.

        Sizes are compared here; the bytes are, when they are taken.
        """
        return self._indexed(index_key(fingerprint))

    def named(self, name: str) -> Entry | None:
        """Return the dataset pushed under a name, or None if there is none whole."""
        return self._indexed(name_key(name))

    def name(self, name: str, dir_id: str, digest: str) -> None:
        """Give a dataset a name, by which a recipe takes it on another machine.

        Raises:
            UserError: the name has other content: a name is part of fingerprints, and what it
                stands for must not change.
        """
        record = IndexRecord(dir_id=dir_id, digest=digest)
        try:
            before = IndexRecord.model_validate_json(self.backend.read(name_key(name)))
        except (FileNotFoundError, ValidationError):
            self.backend.write(name_key(name), record.model_dump_json(indent=2).encode() + b"\n")
            return
        if before.digest != digest:
            raise UserError(
                f"The content store {self.where} has other content named {name!r} (digest "
                f"{before.digest[:12]}): a name never changes its content; choose another."
            )

    def find(self, digest: str) -> Entry | None:
        """Return the artifact with a content digest, or None if any of its objects is not there."""
        return self._indexed(digest_key(digest))

    def manifest(self, dir_id: str) -> Manifest:
        """Return the manifest of a stored artifact without fetching its files.

        Raises:
            DamagedObjectError: the artifact's list or its manifest is missing or damaged.
        """
        members = {member.relpath: member.md5 for member in self._members(dir_id)}
        return _parse_manifest(self._read(members[MANIFEST]))

    def entry(self, dir_id: str) -> Entry:
        """Describe a stored artifact.

        Raises:
            DamagedObjectError: an object of it is missing or has another size.
        """
        members = {member.relpath: member.md5 for member in self._members(dir_id)}
        manifest = _parse_manifest(self._read(members[MANIFEST]))
        sizes = dict(zip(members, self._each(self._size, list(members.values())), strict=True))
        for name, file in manifest.files.items():
            if sizes.get(name) != file.size:
                raise self._damaged(file.md5, f"is not the {file.size} bytes of {name}")
        return Entry(
            dir_id=dir_id,
            digest=manifest.digest,
            size=sum(sizes.values()),
            num_files=len(sizes),
            details=manifest.details,
        )

    def export_pointer(self, dir_id: str, out: Path) -> Path:
        """Write ``<out>.dvc``, from which a plain ``dvc pull`` brings ``out`` back byte for byte.

        Inside a git repository the pointer must not be ignored by git: DVC refuses it then. Inside
        a DVC repository its cache gets the artifact, too, as links. Where nothing can be written
        and nothing needs to be, nothing is.

        Raises:
            DamagedObjectError: the artifact is not whole in the store.
            UserError: another file has that name.
        """
        entry = self.entry(dir_id)
        pointer = out.with_name(f"{out.name}.dvc")
        lines = [
            "outs:",
            f"- md5: {entry.dir_id}",
            f"  size: {entry.size}",
            f"  nfiles: {entry.num_files}",
            "  hash: md5",
            # JSON text is YAML text, and quotes any name safely.
            f"  path: {json.dumps(out.name)}",
        ]
        text = "\n".join(lines) + "\n"
        if not pointer.is_file() or pointer.read_text(encoding="utf-8") != text:
            atomic_write_text(claim_pointer(out), text)
        self._tell_dvc(dir_id, out)
        self.note(pointer)
        return pointer

    def note(self, path: Path) -> None:
        """Write down that a result lies at the pointer or the manifest ``path``, for ``gc``."""
        if not self.is_remote:
            with suppress(OSError):  # a store that can only be read; nothing is collected there
                places.remember(self.root.parent, path)

    def _tell_dvc(self, dir_id: str, out: Path) -> None:
        """Link a stored artifact, which lies in ``out``, into the cache of DVC's repository there.

        The cache may be this very folder. One that cannot be written costs no more than DVC's
        knowledge of the artifact.
        """
        folder = cache_of(out)
        if folder is None or (not self.is_remote and same_file(folder, self.root)):
            return
        cache = LocalBackend(folder)
        with suppress(OSError):
            for member in self._members(dir_id):
                key = object_key(member.md5)
                if cache.size(key) is None:
                    kept = self.root / key
                    cache.put_file(out / member.relpath if self.is_remote else kept, key)
            if cache.size(object_key(dir_id)) is None:
                cache.write(object_key(dir_id), self._read(dir_id))

    def _indexed(self, key: str) -> Entry | None:
        try:
            return self.entry(IndexRecord.model_validate_json(self.backend.read(key)).dir_id)
        except (FileNotFoundError, ValidationError, DamagedObjectError):
            return None

    def _each(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        return each(function, items, self.backend.parallel)

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
        dir_id = f"{md5}{DIRECTORY_SUFFIX}"
        if self.backend.size(object_key(dir_id)) != len(data):
            self.backend.write(object_key(dir_id), data)
        return dir_id

    def _members(self, dir_id: str) -> list[Member]:
        """Read a stored directory's list, refusing names that lead out of the directory."""
        data = self._read(dir_id)
        try:
            members = TypeAdapter(list[Member]).validate_json(data)
        except ValidationError:
            raise self._damaged(dir_id, "is not a list of files") from None
        for member in members:
            if not is_relative_name(member.relpath) or member.relpath == REMOTE:
                raise self._damaged(dir_id, f"lists the file {member.relpath!r}")
        if not any(member.relpath == MANIFEST for member in members):
            raise self._damaged(dir_id, f"lists no {MANIFEST}")
        return members

    def _read(self, name: str) -> bytes:
        try:
            data = self.backend.read(object_key(name))
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(name) from None
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != name.removesuffix(
            DIRECTORY_SUFFIX
        ):
            raise self._damaged(name, "does not have the md5 of its name")
        return data

    def _take(self, member: Member, work: Path, *, link: bool) -> FileEntry:
        target = work / member.relpath
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            written = self.backend.get_file(object_key(member.md5), target, link=link)
        except FileNotFoundError:
            raise self._missing(member.md5) from None
        if written.md5 != member.md5:
            raise self._damaged(member.md5, "does not have the md5 of its name")
        return written

    def _check_manifest(
        self, work: Path, written: dict[str, FileEntry], left: dict[str, int]
    ) -> None:
        """Compare sha256, which md5 is no substitute for, with the artifact's own manifest.

        Of files that were ``left`` in the store the size is all that is known.
        """
        manifest = _parse_manifest((work / MANIFEST).read_bytes())
        for name in (*written, *left):
            if name not in manifest.files and not is_detached(name):
                raise DamagedObjectError(
                    f"The stored directory has {name}, which its {MANIFEST} does not list; push "
                    "the artifact again."
                )
        for name, entry in manifest.files.items():
            if name in left:
                if left[name] != entry.size:
                    raise self._damaged(entry.md5, f"is not the {entry.size} bytes of {name}")
                continue
            if name not in written:
                raise DamagedObjectError(
                    f"The stored directory lacks {name}, which its {MANIFEST} lists."
                )
            if written[name].sha256 != entry.sha256:
                raise self._damaged(entry.md5, "does not have the sha256 in the manifest")

    def _size(self, md5: str) -> int:
        size = self.backend.size(object_key(md5))
        if size is None:
            raise self._missing(md5)
        return size

    def _missing(self, name: str) -> DamagedObjectError:
        return DamagedObjectError(
            f"{object_key(name)} is not in the content store {self.where}; "
            "run the same command again to make it, or fetch it with 'dvc pull'."
        )

    def _damaged(self, name: str, what: str) -> DamagedObjectError:
        self.backend.set_aside(object_key(name))
        return DamagedObjectError(
            f"{object_key(name)} in the content store {self.where} {what}; it was set aside, "
            "run the same command again to make it anew."
        )


def _parse_manifest(data: bytes) -> Manifest:
    try:
        return parse_manifest(data.decode("utf-8"), Path(MANIFEST))
    except (UserError, UnicodeDecodeError):
        raise DamagedObjectError(
            f"The stored {MANIFEST} cannot be read by this version of manyeyes."
        ) from None
