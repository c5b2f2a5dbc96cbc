"""Rooms: what stands at the top of a package, and which of them imports from which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tools.structure.source import Source

Arrows = set[tuple[str, str]]


def names_at_the_top(package: Path) -> list[str]:
    """Return the modules and folders of a package that a reader sees first."""
    return sorted(
        path.stem
        for path in package.iterdir()
        if not path.name.startswith(("_", "."))
        and (path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py"))))
    )


def room_of(module: str, package: str) -> str:
    """Return the room of a package in which a module lies; the module's own top outside of it."""
    if module == package or not module.startswith(f"{package}."):
        return module.split(".", maxsplit=1)[0]
    return module.removeprefix(f"{package}.").split(".")[0]


def arrows(source: Source, package: str, *, inside_only: bool = False) -> Arrows:
    """Return which room imports from which.

    Args:
        source: the modules.
        package: whose rooms; every other top-level package is one room.
        inside_only: leave out modules outside of the package.
    """
    found: Arrows = set()
    for module in source.modules.values():
        for name in source.imports(module):
            if inside_only and not all(
                one.startswith(f"{package}.") for one in (module.name, name)
            ):
                continue
            start, end = room_of(module.name, package), room_of(name, package)
            if start != end:
                found.add((start, end))
    return found


def circles(found: Arrows) -> list[list[str]]:
    """Return groups of rooms that can each be reached from each other by arrows."""
    after: dict[str, set[str]] = {}
    for start, end in found:
        after.setdefault(start, set()).add(end)
    reached = {room: _reach(room, after) for room in {one for arrow in found for one in arrow}}
    groups = {
        tuple(
            sorted(other for other in reached if other in reached[room] and room in reached[other])
        )
        for room in reached
    }
    return sorted([list(group) for group in groups if len(group) > 1])


def _reach(room: str, after: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [room]
    while waiting:
        for other in after.get(waiting.pop(), ()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found
