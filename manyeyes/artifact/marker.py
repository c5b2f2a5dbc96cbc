"""The marker: a file which says of an unfinished folder that it is ours, and may be removed.

A folder that is written in place has it from the beginning (``begin``) until it is whole
(``finish``). A folder whose files are known (``mark``) lists them in it, and is ours only as long
as it holds no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from manyeyes.artifact.manifest import UNFINISHED
from manyeyes.runtime.plain_files import read_plain_text

MARK = "manyeyes makes or made this folder: it is unfinished, and removed when it is in the way.\n"


def reserve(folder: Path, names: Iterable[str]) -> None:
    """Make a folder that is ours with the files it has and those that will be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    _list(folder, {*names, *_names(folder)} - {UNFINISHED})


def mark(folder: Path) -> None:
    """Write the marker into a folder that is ours with the files it has now, and no others."""
    _list(folder, _names(folder) - {UNFINISHED})


def begin(folder: Path) -> None:
    """Make a folder in which a result is written in place, with the marker first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNFINISHED).write_text(MARK, "utf-8")


def finish(folder: Path) -> None:
    """Take the marker out of a folder whose result is whole."""
    (folder / UNFINISHED).unlink(missing_ok=True)


def is_marked(folder: Path) -> bool:
    """Say whether a folder is ours by its marker, with no files but those it may have."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        head, *names = read_plain_text(folder / UNFINISHED).splitlines(keepends=True)
    except (OSError, ValueError):
        return False
    listed = {name.rstrip("\n") for name in names}
    return head == MARK and (not listed or _names(folder) - {UNFINISHED} <= listed)


def _list(folder: Path, names: set[str]) -> None:
    (folder / UNFINISHED).write_text(MARK + "".join(f"{name}\n" for name in sorted(names)), "utf-8")


def _names(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
