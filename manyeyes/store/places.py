"""Where results of a store lie: what ``gc`` must ask before anything goes.

``places.jsonl`` beside the store has a line for every pointer that was exported, with the git
project that holds it and the device it lay on. A place on a device that is not here now is not a
place that is gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from manyeyes.runtime.journal import append_line

FILE = "places.jsonl"


@dataclass(frozen=True)
class Place:
    """One exported pointer."""

    pointer: str
    """Absolute path of the ``.dvc`` file."""
    project: str
    """The git project around it; empty without one."""
    device: int

    @classmethod
    def of(cls, pointer: Path) -> Place:
        """Describe a pointer that is there."""
        pointer = pointer.absolute()
        return cls(str(pointer), str(project_of(pointer) or ""), os.stat(pointer.parent).st_dev)

    @property
    def is_gone(self) -> bool:
        """Whether it was removed: what is left of its path is on the device it lay on."""
        return not os.path.lexists(self.pointer) and self.device == _device(Path(self.pointer))

    @property
    def is_away(self) -> bool:
        """Whether its disk is not here, as far as can be told."""
        return not os.path.lexists(self.pointer) and not self.is_gone

    def is_below(self, folders: Collection[str]) -> bool:
        """Whether the pointer is one of these, or lies in one of these folders."""
        path = Path(self.pointer)
        return any(str(place) in folders for place in (path, *path.parents))


def project_of(path: Path) -> Path | None:
    """Return the git project that holds a path; None if there is none."""
    for folder in path.absolute().parents:
        if (folder / ".git").exists():
            return folder
    return None


def remember(folder: Path, pointer: Path) -> None:
    """Write down where a pointer was exported, once."""
    place = Place.of(pointer)
    if place in read(folder):
        return
    append_line(folder / FILE, asdict(place))


def read(folder: Path) -> list[Place]:
    """Return the places that were written down, each once; a damaged line is left out."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    found: dict[str, Place] = {}
    for line in lines:
        with suppress(ValueError, TypeError):
            place = Place(**json.loads(line))
            found[place.pointer] = place
    return list(found.values())


def _device(path: Path) -> int | None:
    """Return the device of what is there of a path."""
    for folder in path.parents:
        with suppress(OSError):
            return os.stat(folder).st_dev
    return None
