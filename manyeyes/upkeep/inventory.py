"""What the store of this machine has: objects with their sizes, and which directory lists which."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from manyeyes.artifact.manifest import MANIFEST, Manifest
from manyeyes.store.content import IndexRecord, Store
from manyeyes.store.layout import DIRECTORY_SUFFIX, INDEX, Member

_MEMBERS = TypeAdapter(list[Member])


@dataclass(frozen=True)
class Object:
    """One file of the store."""

    path: Path
    size: int
    links: int
    """Names of the file; more than one where a result shares it."""
    changed: float
    """When it was last given a name, in seconds since 1970."""


@dataclass(frozen=True)
class Inventory:
    """Everything the store has."""

    objects: dict[str, Object]
    """By name: an md5, or ``<md5>.dir``."""
    trees: dict[str, frozenset[str]]
    """``<md5>.dir`` to the names of the files it lists."""
    stages: dict[str, str]
    """``<md5>.dir`` to the stage that made it (``sft``, ``prealign:clip``)."""
    records: dict[Path, IndexRecord]
    """Files of the index: which directory a fingerprint, a digest or a name means."""

    @classmethod
    def of(cls, store: Store) -> Inventory:
        """Look through a store; the bytes are not read, only the lists."""
        objects = dict(_objects(store.root / "files/md5"))
        lists = {
            name: _listed(found.path)
            for name, found in objects.items()
            if name.endswith(DIRECTORY_SUFFIX)
        }
        trees = {name: frozenset(files.values()) for name, files in lists.items()}
        stages = {
            name: _stage_of(objects[files[MANIFEST]].path)
            for name, files in lists.items()
            if files.get(MANIFEST) in objects
        }
        return cls(objects, trees, stages, dict(_records(store.root.parent / INDEX)))

    def closure(self, names: set[str]) -> frozenset[str]:
        """Return the names with all that the directories among them list, as far as it is here."""
        found = set(names)
        for name in names:
            found |= self.trees.get(name, frozenset())
        return frozenset(found & self.objects.keys())

    def bytes_of(self, names: frozenset[str] | set[str]) -> int:
        """Return how many bytes these objects have."""
        return sum(self.objects[name].size for name in names)

    def by_digest(self, digest: str) -> str | None:
        """Return the directory with a content digest; None if the index does not know it."""
        for record in self.records.values():
            if record.digest == digest:
                return record.dir_id
        return None


def _objects(root: Path) -> list[tuple[str, Object]]:
    found = []
    for place, _, names in os.walk(root):
        folder = Path(place)
        for name in names:
            try:
                status = (folder / name).lstat()
            except OSError:
                continue  # another process took it away
            one = Object(folder / name, status.st_size, status.st_nlink, status.st_ctime)
            found.append((folder.name + name, one))
    return found


def _listed(path: Path) -> dict[str, str]:
    """Return path to md5 of a directory's list; a damaged one names nothing that could be kept."""
    try:
        return {one.relpath: one.md5 for one in _MEMBERS.validate_json(path.read_bytes())}
    except (OSError, ValidationError):
        return {}


def _stage_of(path: Path) -> str:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return ""
    return manifest.task.label


def _records(folder: Path) -> list[tuple[Path, IndexRecord]]:
    found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            found.append((path, IndexRecord.model_validate_json(path.read_bytes())))
        except (OSError, ValidationError):
            continue
    return found
