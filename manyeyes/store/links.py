"""One file under two names: its bytes lie on a disk once.

Tried in this order: a clone (``FICLONE``: Btrfs, XFS), which shares blocks until one side is
written; a hard link, for which the file becomes read-only, since an edit under one name would be
an edit under all; a copy, where neither can be (another file system, no such call, too many
links), and for a small file, which people edit in place, root (whom read-only does not stop) too.
Whoever wants to change a linked file writes a new one and renames it, as editors do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

READ_ONLY = 0o444
SMALL = 64 << 10
"""Bytes up to which a file is copied: a configuration, a list, not weights and not pictures."""
_FICLONE = 0x40049409
"""``_IOW(0x94, 9, int)`` of linux/fs.h."""
NO_LINK = (
    errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP, errno.ENOSYS,
    errno.EINVAL,
)  # fmt: skip


def share(source: Path, target: Path) -> None:
    """Make ``target``, which is not there yet, a file with the bytes of ``source``.

    Args:
        source: a plain file, or a link to one; it may become read-only.
        target: the new name. Who needs to be sure of its bytes hashes them there.

    Raises:
        OSError: ``source`` cannot be read, or ``target`` cannot be written.
    """
    source = source.resolve()
    if source.stat().st_size > SMALL and (_cloned(source, target) or _linked(source, target)):
        return
    shutil.copyfile(source, target)


def same_file(one: Path, other: Path) -> bool:
    """Say whether two names mean one file; no where one of them is not there."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def hard_link(source: Path, target: Path) -> bool:
    """Make a hard link; say no where the file system does not."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in NO_LINK:
            return False
        raise
    return True


def _linked(source: Path, target: Path) -> bool:
    """Link a file that nobody can write any more."""
    status = source.stat()
    if status.st_mode & 0o222:
        try:
            source.chmod(stat.S_IMODE(status.st_mode) & ~0o222 | READ_ONLY)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
                return False  # another user's: what is not read-only is not linked
            raise
    return hard_link(source, target)


def _cloned(source: Path, target: Path) -> bool:
    """Clone a file; say no where the file system does not."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            pass
        else:
            return True
    target.unlink()
    return False
