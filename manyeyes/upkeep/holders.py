"""Who holds which objects of the store, and who was asked and did not answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from manyeyes.artifact.manifest import MANIFEST, POINTER, Manifest
from manyeyes.errors import ManyeyesError
from manyeyes.registry import known as registries
from manyeyes.runtime.home import home
from manyeyes.runtime.locks import is_held
from manyeyes.steps import STEPS
from manyeyes.store import places
from manyeyes.store.dvc import FOLDER, repository_of
from manyeyes.store.layout import INDEX
from manyeyes.store.pointer import Pointer
from manyeyes.upkeep import gitrefs
from manyeyes.upkeep.inventory import Inventory

Kind = Literal["results", "git", "dvc", "registry", "dataset", "unfinished", "running"]
_STAGES = {step.name for step in STEPS}
SLACK = 60.0
"""Seconds between what a clock of a file system and another one may say."""


@dataclass(frozen=True)
class Holder:
    """Somebody who needs objects."""

    kind: Kind
    name: str
    objects: frozenset[str]


@dataclass
class Holders:
    """All that were asked."""

    found: list[Holder] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    """Who did not answer, and why."""

    @classmethod
    def of(cls, inventory: Inventory, forget: frozenset[str] = frozenset()) -> Holders:
        """Ask everybody who may need something of the store.

        Args:
            inventory: what the store has.
            forget: names of places, projects and registries that are not to be asked any more.
        """
        holders = cls()
        known = [one for one in places.read(home()) if not one.is_below(forget)]
        holders._results(inventory, known)
        holders._projects(inventory, known, forget)
        holders._registries(inventory, forget)
        holders._datasets(inventory)
        holders._runs(inventory)
        return holders

    @property
    def objects(self) -> frozenset[str]:
        """Everything that somebody holds."""
        return frozenset().union(*(holder.objects for holder in self.found))

    def _add(self, kind: Kind, name: str, names: set[str], inventory: Inventory) -> None:
        objects = inventory.closure(names)
        if objects:
            self.found.append(Holder(kind, name, objects))

    def _results(self, inventory: Inventory, known: list[places.Place]) -> None:
        """Folders with results, by their pointers or manifests."""
        folders: dict[str, set[str]] = {}
        for place in known:
            if place.is_gone:
                continue
            if place.is_away:
                self.silent.append(f"the disk of {place.pointer} is not here")
                continue
            path = Path(place.pointer)
            folders.setdefault(_folder_of(path), set()).update(_named_by(path, inventory))
        for folder, names in sorted(folders.items()):
            self._add("results", folder, names, inventory)

    def _projects(
        self, inventory: Inventory, known: list[places.Place], forget: frozenset[str]
    ) -> None:
        """Git projects that hold results, this store, or the working directory.

        What a pointer in their files means that is a known place was said there.
        """
        listed = {name for place in known for name in _named_by(Path(place.pointer), inventory)}
        near = [home() / "store", Path.cwd() / "file"]
        found = {place.project for place in known if place.project and not place.is_away}
        found |= {str(project) for path in near if (project := places.project_of(path))}
        for folder in sorted(found - forget):
            if not os.path.exists(folder):
                continue  # removed with its disk here: `_results` asked
            try:
                for ref in gitrefs.references(Path(folder)):
                    names = set(ref.names) - (listed if ref.is_files else set())
                    self._add("git", f"{folder}: {ref.name}", names, inventory)
            except ManyeyesError as error:
                self.silent.append(str(error))
        for path in near:
            repository = repository_of(path)
            if repository and not places.project_of(path):
                names = set().union(*map(_hashes_of, _dvc_files(repository)))
                self._add("dvc", str(repository), names, inventory)

    def _registries(self, inventory: Inventory, forget: frozenset[str]) -> None:
        for uri in registries.known():
            if uri in forget:
                continue
            try:
                for version in registries.versions(uri):
                    made_from = map(inventory.by_digest, version.digests)
                    names = {version.directory, *filter(None, made_from)}
                    self._add("registry", version.name, names, inventory)
            except ManyeyesError as error:
                self.silent.append(str(error))

    def _datasets(self, inventory: Inventory) -> None:
        folder = home() / INDEX / "name"
        for path, record in inventory.records.items():
            if path.parent == folder:
                self._add("dataset", path.stem, {record.dir_id}, inventory)

    def _runs(self, inventory: Inventory) -> None:
        """Runs that can be continued, and what was touched since the oldest of those that go on."""
        for folder in sorted((home() / "kfp").glob("*")):
            names = {name for path in _pointers(folder) for name in _named_by(path, inventory)}
            self._add("unfinished", folder.name, names, inventory)
        going = running()
        if going:
            since = min(going.values()) - SLACK
            recent = {name for name, one in inventory.objects.items() if one.changed >= since}
            self._add("running", ", ".join(sorted(going)), recent, inventory)


def running() -> dict[str, float]:
    """Return the locks that living processes hold, and since when, in seconds since 1970.

    That of a collection, which may be this process, is none of them.

    Raises:
        OSError: the file system does not say who holds a lock.
    """
    return {
        path.stem: path.stat().st_mtime
        for path in (home() / "locks").glob("*.lock")
        if path.stem != "gc" and is_held(path)
    }


def _folder_of(pointer: Path) -> str:
    """Return the folder of a run that a pointer belongs to, or the result itself."""
    name = pointer.stem if pointer.suffix == ".dvc" else pointer.parent.name
    above = pointer.parent if pointer.suffix == ".dvc" else pointer.parent.parent
    if above.name == "prealign":
        return str(above.parent)
    return str(above) if name in _STAGES else str(above / name)


def _pointers(folder: Path) -> Iterator[Path]:
    for name in (POINTER, MANIFEST):
        yield from folder.rglob(name)


def _named_by(path: Path, inventory: Inventory) -> set[str]:
    """Return the directories that a pointer, a ``.dvc`` file or a manifest stands for."""
    try:
        data = path.read_bytes()
        if path.name == POINTER:
            return {Pointer.model_validate_json(data).dir_id}
        if path.name == MANIFEST:
            found = inventory.by_digest(Manifest.model_validate_json(data).digest)
            return {found} if found else set()
    except (OSError, ValidationError):
        return set()
    return set(gitrefs.hashes_in(data))


def _hashes_of(path: Path) -> frozenset[str]:
    return gitrefs.hashes_in(path.read_bytes())


def _dvc_files(repository: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(repository):
        folders[:] = [name for name in folders if name != FOLDER and not name.startswith(".")]
        for name in names:
            if name.endswith(".dvc") or name == "dvc.lock":
                yield Path(place, name)
