"""``gc``: what nobody holds, listed, and removed when that was asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.errors import UserError
from manyeyes.registry import known as registries
from manyeyes.runtime.home import home
from manyeyes.runtime.locks import HeldElsewhere, held
from manyeyes.store import Store, places
from manyeyes.store.layout import DIRECTORY_SUFFIX
from manyeyes.upkeep.holders import Holder, Holders
from manyeyes.upkeep.inventory import Inventory
from manyeyes.upkeep.leftovers import DAYS, Leftover, leftovers


@dataclass(frozen=True)
class Garbage:
    """What may go."""

    inventory: Inventory
    holders: tuple[Holder, ...]
    objects: frozenset[str]
    """Names of the objects that nobody holds."""
    leftovers: tuple[Leftover, ...]

    @property
    def size(self) -> int:
        """Bytes of the objects."""
        return self.inventory.bytes_of(self.objects)

    @property
    def freed(self) -> int:
        """Bytes that the disk gets back: an object with a second name stays under that."""
        found = (self.inventory.objects[name] for name in self.objects)
        return sum(one.size for one in found if one.links == 1) + sum(
            left.size for left in self.leftovers
        )

    @property
    def made_by(self) -> dict[str, str]:
        """Per directory among the objects the stage that made it; empty where nothing tells."""
        return {name: self.inventory.stages.get(name, "") for name in self.results}

    def lonely_bytes(self, name: str) -> int:
        """Return the bytes of a directory's files that nobody holds."""
        return self.inventory.bytes_of(self.inventory.trees[name] & self.objects)

    @property
    def results(self) -> list[str]:
        """The directories among the objects."""
        return sorted(name for name in self.objects if name.endswith(DIRECTORY_SUFFIX))


def garbage(store: Store, *, days: float = DAYS, forget: Collection[str] = ()) -> Garbage:
    """Return what may go of a store of this machine and of the folders beside it.

    Args:
        store: the content store.
        days: for how long unfinished work and the records of runs are kept.
        forget: places, projects and registries that are gone for good.

    Raises:
        UserError: the store is a bucket, or somebody who may need something does not answer.
    """
    if store.is_remote:
        raise UserError(
            f"gc looks after the store of this machine, but MANYEYES_STORE names {store.where}: "
            "unset it, or use 'dvc gc -c' for the bucket."
        )
    try:
        inventory = Inventory.of(store)
        holders = Holders.of(inventory, frozenset(forget))
        left = leftovers(days)
    except OSError as error:
        raise UserError(
            f"Nothing was removed: {error.filename or home()} does not answer ({error.strerror})."
        ) from None
    if holders.silent:
        raise UserError(
            f"Nothing was removed: {'; '.join(holders.silent)}. Let all answer, or name what is "
            "gone for good with --forget."
        )
    gone = {entry.path.name for entry in left if entry.path.parent == home() / "kfp"}
    kept = [one for one in holders.found if one.kind != "unfinished" or one.name not in gone]
    free = frozenset(inventory.objects) - frozenset().union(*(one.objects for one in kept))
    return Garbage(inventory, tuple(kept), free, tuple(left))


def collect(store: Store, *, days: float = DAYS, forget: Collection[str] = ()) -> Garbage:
    """Remove what may go, and return what that was; raises as ``garbage``.

    First the index forgets a result, then its list goes, then its files: a process that looks
    meanwhile finds it whole or not at all.
    """
    try:
        with held(home() / "locks/gc.lock", wait=False):
            found = garbage(store, days=days, forget=forget)
            _remove_objects(found)
            for left in found.leftovers:
                _remove(left.path)
            _forget_places(set(forget))
            registries.forget(forget)
    except HeldElsewhere:
        raise UserError("Another gc is at work; wait for it.") from None
    return found


def _remove_objects(found: Garbage) -> None:
    objects = found.inventory.objects
    for path, record in found.inventory.records.items():
        lost = record.dir_id not in objects and path.parent.name != "name"
        if record.dir_id in found.objects or lost:
            path.unlink(missing_ok=True)
    for name in (*found.results, *sorted(found.objects - set(found.results))):
        objects[name].path.unlink(missing_ok=True)
        with suppress(OSError):
            objects[name].path.parent.rmdir()


def _remove(path: Path) -> None:
    if path.parent == home() / "locks":
        with suppress(HeldElsewhere), held(path, wait=False):
            pass  # it goes when it is released
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _forget_places(forget: set[str]) -> None:
    """Drop the places that are gone, so that their list does not grow."""
    known = places.read(home())
    kept = [one for one in known if not one.is_gone and not one.is_below(forget)]
    if len(kept) < len(known):
        text = "".join(json.dumps(asdict(one)) + "\n" for one in kept)
        atomic_write_text(home() / places.FILE, text)
