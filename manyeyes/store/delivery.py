"""How a stage's inputs come to it and where its result goes: whole directories, or pointers.

A person and DVC want directories. A step of a pipeline gets and leaves pointers: a pod shares no
disk with the next, and here nobody looks into the folders between them. The bytes behind an input
are fetched only when the stage really runs, into a folder of this process, as links into the store
or into the node's cache. A dataset's shards
may stay in the bucket (``MANYEYES_SHARDS``) where a stage trains or evaluates: it reads pictures
one by one, and often only some. ``validate`` reads every byte, so there it would save nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from manyeyes.artifact.manifest import MANIFEST, Manifest, read_manifest
from manyeyes.runtime.locks import scratch
from manyeyes.steps import step
from manyeyes.store.content import Store
from manyeyes.store.pointer import read_pointer, write_pointer
from manyeyes.store.settings import shards_are_remote

NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class Delivery:
    """Where one result goes."""

    store: Store
    out: Path
    by_pointer: bool
    """Leave a pointer in ``out`` instead of the files."""

    def fetch(self, fingerprint: str) -> Manifest | None:
        """Deliver what the store has of a fingerprint; None if it has nothing whole."""
        if not self.by_pointer:
            found = self.store.fetch(fingerprint, self.out)
            if found is None:
                return None
            self.store.note(self.out / MANIFEST)
            return read_manifest(self.out)
        entry = self.store.lookup(fingerprint)
        if entry is None:
            return None
        manifest = self.store.manifest(entry.dir_id)
        write_pointer(self.store, entry.dir_id, manifest, self.out)
        return manifest

    def keep(self, work: Path, manifest: Manifest) -> None:
        """Store a finished result, remember its fingerprint, and deliver it."""
        dir_id = self.store.put(work, manifest)
        self.store.remember(manifest.fingerprint, dir_id, manifest.digest)
        if self.by_pointer:
            write_pointer(self.store, dir_id, manifest, self.out)
        else:
            self.store.checkout(dir_id, self.out)
            self.store.note(self.out / MANIFEST)

    def also_under(self, fingerprint: str, manifest: Manifest) -> None:
        """Find a stored result under a second key: that of a machine which knew less of it."""
        entry = self.store.find(manifest.digest)
        if entry is not None:
            self.store.remember(fingerprint, entry.dir_id, entry.digest)


def left_behind(stage: str) -> Mapping[str, str]:
    """Return which files of a stage's inputs stay in the bucket: kind to how their paths start.

    Raises:
        UserError: ``MANYEYES_SHARDS`` has a value that cannot be used.
    """
    shows_pictures = step(stage).writes == "checkpoint" or stage == "eval"
    return {"dataset": "shards/"} if shows_pictures and shards_are_remote() else {}


@contextmanager
def whole(
    store: Store, paths: Mapping[str, Path], folder_of_all: Path, leave: Mapping[str, str] = NOTHING
) -> Iterator[dict[str, Path]]:
    """Give every input as a directory with all its files, fetching what is only a pointer.

    Args:
        store: where pointers point.
        paths: role to directory.
        folder_of_all: for what is fetched; what killed processes left there is removed.
        leave: files that stay in the store, as ``left_behind`` says.

    Raises:
        DamagedObjectError: the store does not have an input whole.
    """
    pointers = {
        role: pointer for role, path in paths.items() if (pointer := read_pointer(path)) is not None
    }
    if not pointers:
        yield dict(paths)
        return
    folder_of_all.mkdir(parents=True, exist_ok=True)
    with scratch(folder_of_all, "") as folder:
        places = {pointer.dir_id: folder / pointer.dir_id for pointer in pointers.values()}
        kinds = {pointer.dir_id: pointer.kind for pointer in pointers.values()}
        for dir_id, place in places.items():
            store.checkout(dir_id, place, link=True, leave=leave.get(kinds[dir_id], ""))
        yield {**paths, **{role: places[pointer.dir_id] for role, pointer in pointers.items()}}
