"""Locks that die with their process, and folders that do not outlive theirs for long.

Both are the kernel's ``flock`` of a file: a process that is killed releases it without a word.

- The file of a lock is removed when the lock is released, so that a folder of locks does not grow.
  Whoever gets the lock of a file that is no longer the one of that name tries again.
- A scratch folder holds such a file, ``OWNER``, locked as long as its process lives. Who makes the
  next folder of that kind in the same place removes those that a killed process left: they have
  that file, nobody holds it, and they belong to the same user. Anything else is left alone.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from manyeyes.errors import UserError

OWNER = ".manyeyes-owner"
"""The locked file of a scratch folder."""
TEMPORARY = "manyeyes-"
"""How temporary folders begin."""
NO_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What the system answers where nothing can be written."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""What it answers where files cannot be locked: NFS without its lock service, some FUSE."""


class HeldElsewhere(Exception):
    """Another process holds the lock, and nobody wanted to wait."""


@contextmanager
def held(path: Path, *, wait: bool = True, optional: bool = False) -> Iterator[None]:
    """Hold the lock of a name.

    Args:
        path: the lock's file; made, and removed at the end.
        wait: wait for who holds it.
        optional: go on without a lock where there can be none. For those who change nothing that
            two processes share.

    Raises:
        HeldElsewhere: not ``wait``, and another process holds it.
        UserError: there can be no lock: nothing can be written there, or there are no locks.
    """
    try:
        descriptor = _acquire(path, wait=wait)
    except OSError as error:
        if error.errno not in (*NO_WRITING, *NO_LOCKS):
            raise
        if not optional:
            raise _impossible(path, error) from None
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held: who waits for it sees that it is gone
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Say whether a living process holds the lock of this file.

    Raises:
        OSError: the system does not answer that.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """Give an empty folder that goes at the end, and remove those of killed processes.

    Args:
        parent: where it shall lie; an existing folder.
        prefix: how its name and those of its kind begin.

    Yields:
        A folder within the one that is marked, for this process alone.

    Raises:
        OSError: nothing can be written in ``parent``.
    """
    remove_stale(parent, prefix)
    outer = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    descriptor = -1
    try:
        descriptor = _marked(outer)
        inner = outer / "work"
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def temporary() -> Iterator[Path]:
    """Give an empty folder among the system's temporary files; a scratch folder as any other."""
    with scratch(Path(tempfile.gettempdir()), TEMPORARY) as folder:
        yield folder


def until_the_end() -> Path:
    """Return an empty temporary folder that goes when this process ends."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary())


def _marked(folder: Path) -> int:
    """Mark a folder as this process's and return the descriptor that holds it.

    Where files cannot be locked it gets no mark, and so only this process removes it.
    """
    unmarked = folder / f"{OWNER}.new"
    descriptor = os.open(unmarked, os.O_RDWR | os.O_CREAT, 0o600)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        unmarked.rename(folder / OWNER)
    return descriptor


def remove_stale(parent: Path, prefix: str) -> list[Path]:
    """Remove the scratch folders of one kind whose process is gone; return which they were."""
    removed = []
    for path in stale(parent, prefix):
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path)
    return removed


def stale(parent: Path, prefix: str) -> list[Path]:
    """Return the scratch folders of one kind whose process is gone."""
    found = []
    with suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    if _is_abandoned(Path(entry.path)):
                        found.append(Path(entry.path))
    return sorted(found)


def _is_abandoned(folder: Path) -> bool:
    """Say whether a folder is marked as ours, belongs to this user, and nobody holds it.

    Raises:
        OSError: it is not marked, or the system does not say who holds it.
    """
    mark = os.lstat(folder / OWNER)
    return mark.st_uid == os.getuid() and not is_held(folder / OWNER)


def _acquire(path: Path, *, wait: bool) -> int:
    """Open and lock the file that has this name, and return its descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _has_name(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise HeldElsewhere(str(path)) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                path.unlink(missing_ok=True)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who held it removed it; another process may have made a new one


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _impossible(path: Path, error: OSError) -> UserError:
    if error.errno in NO_LOCKS:
        return UserError(
            f"The file system of {path.parent} cannot lock files ({error.strerror}), which keeps "
            "two processes from writing one result: set MANYEYES_HOME to a folder of a local disk."
        )
    return UserError(
        f"Cannot write {path} ({error.strerror}): set MANYEYES_HOME to a folder that can be "
        "written; what is there can be read as it is."
    )
