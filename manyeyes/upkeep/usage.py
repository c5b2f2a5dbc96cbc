"""``du``: who holds how much of the store, and what lies beside it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from manyeyes.errors import UserError
from manyeyes.runtime.disk import size_of
from manyeyes.runtime.home import home
from manyeyes.store import Store
from manyeyes.upkeep.holders import Holders
from manyeyes.upkeep.inventory import Inventory


@dataclass(frozen=True)
class Line:
    """One holder."""

    kind: str
    name: str
    size: int
    """Bytes of all it holds."""
    own: int
    """Bytes that nobody else holds: what the disk gets back when it lets go."""


@dataclass(frozen=True)
class Usage:
    """The whole answer."""

    store: str
    total: int
    free: int
    """Bytes of the objects that nobody holds."""
    lines: tuple[Line, ...]
    """The largest first."""
    folders: dict[str, int]
    """Folders of the state directory beside the store, with their bytes."""
    silent: tuple[str, ...]
    """Who did not answer; what they hold counts as held by nobody."""


def usage(store: Store) -> Usage:
    """Say who holds how much of the store of this machine.

    Raises:
        UserError: the store is a bucket.
    """
    if store.is_remote:
        raise UserError(
            f"du looks at the store of this machine, but MANYEYES_STORE names {store.where}: "
            "unset it."
        )
    inventory = Inventory.of(store)
    holders = Holders.of(inventory)
    counts = Counter(name for holder in holders.found for name in holder.objects)
    lines = [
        Line(
            holder.kind,
            holder.name,
            inventory.bytes_of(holder.objects),
            inventory.bytes_of({name for name in holder.objects if counts[name] == 1}),
        )
        for holder in holders.found
    ]
    free = frozenset(inventory.objects) - holders.objects
    return Usage(
        store=store.where,
        total=inventory.bytes_of(frozenset(inventory.objects)),
        free=inventory.bytes_of(free),
        lines=tuple(sorted(lines, key=lambda line: (-line.size, line.name))),
        folders=_folders(),
        silent=tuple(holders.silent),
    )


def _folders() -> dict[str, int]:
    sizes = {
        path.name: size_of(path) if path.is_dir() else path.lstat().st_size
        for path in home().glob("*")
        if path.name != "store"
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))
