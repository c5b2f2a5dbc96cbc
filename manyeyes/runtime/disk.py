"""What a disk that refuses a write says, as one sentence.

A full disk shows itself in three ways (the disk, a quota, a limit on the size of a file) and from
two directions: as an ``OSError``, or inside the text of an error of a library that writes by itself
(safetensors). Whoever knows what the user typed explains it, with ``explained``; the command line
explains what nobody else did.

Folders that keep what can be made again (features, tokens) are bounded in the same way: by a limit
in GiB and half of what the disk has free, and what was unused for longest goes first.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from manyeyes.errors import ManyeyesError, UserError, shown

REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK)
"""Read-only, not allowed, a file system without locks."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AGAIN = "and run the same command again; what was finished is kept."
"""What to do where a run continues."""
ELSEWHERE = "or give another folder with --out."
"""What to do where nothing is kept of an unfinished result."""
USED = "used"
"""A file in what is kept; its time is that of the last use."""
IN_USE = 3600.0
"""Seconds for which something kept counts as used."""


def full_disk(error: BaseException) -> int | None:
    """Return the error's number if it says that there is no room to write, else None."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (inside := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(inside[1])  # how Rust's standard library ends its texts
    return number if number in FULL else None


def refused(error: BaseException) -> UserError | None:
    """Explain a write that the system does not allow; None if the error is another.

    So is a name that no file can have. Last of all: whoever knows the file says it better.
    """
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"No file can be called {shown(error.filename)}: its name is too long.")
    if error.errno not in REFUSED:
        return None
    where = error.filename or "a folder of the run"
    return UserError(
        f"Cannot use {where} ({os.strerror(error.errno)}): set MANYEYES_HOME to a folder that can "
        "be written and locked, or give another folder with --out."
    )


def no_room(number: int, where: Path | str, advice: str) -> UserError:
    """Build the error of a write for which there was no room."""
    remedy = "raise the limit (ulimit -f)" if number == errno.EFBIG else "free some space"
    reason = os.strerror(number)
    return UserError(f"There is no room to write {where} ({reason}): {remedy} {advice}")


@contextmanager
def explained(where: Path, advice: str) -> Iterator[None]:
    """Turn the error of a full disk into a sentence about ``where``; other errors pass.

    Raises:
        UserError: there was no room to write.
    """
    try:
        yield
    except Exception as error:
        number = None if isinstance(error, ManyeyesError) else full_disk(error)
        if number is None:
            raise
        raise no_room(number, where, advice) from error


def size_limit(folder: Path, variable: str, default: float) -> int:
    """Return the bytes that a folder of things that can be made again may take.

    Args:
        folder: may not exist yet.
        variable: of the environment, with the limit in GiB.
        default: GiB where it says nothing, or nothing that is a number.
    """
    try:
        wanted = float(os.environ.get(variable, "") or default)
    except ValueError:
        wanted = default
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    return min(int(wanted * 2**30), shutil.disk_usage(existing).free // 2 + size_of(folder))


def size_of(folder: Path) -> int:
    """Return the bytes of the files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def longest_unused(folders: Iterable[Path]) -> Path | None:
    """Return the folder that nobody used for longest; None if all are in use."""
    oldest = min(folders, key=last_use, default=None)
    return None if oldest is None or time.time() - last_use(oldest) < IN_USE else oldest


def last_use(folder: Path) -> float:
    """Return when something kept was used last, in seconds since 1970; 0 where nothing tells."""
    try:
        return (folder / USED).stat().st_mtime
    except OSError:
        return 0.0


def write_through(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before somebody relies on them.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
