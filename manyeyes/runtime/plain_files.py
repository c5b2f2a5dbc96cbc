"""Reads files that somebody named: plain files alone, of a bounded size.

A name from a command line or out of a file may be a named pipe, on which reading waits for ever, a
device, which never ends, or a file of ``/proc``, which is not somebody's data. Such a thing is
refused before a byte is read, as an ``OSError`` whose ``strerror`` says what it is: whoever reports
that a file cannot be read reports this too.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST_JSON = 256 * 1024 * 1024
"""Bytes of the largest description (manifest, index, config) that is read: far above real ones."""
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_LIVE = ("/proc", "/sys")
"""Where the kernel answers in the place of files."""


class NotPlainError(OSError):
    """What has this name is not a file with bytes of its own, or larger than is read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading; a symbolic link to one will do.

    Raises:
        NotPlainError: it is a pipe, a device, a socket or a file of the kernel's, or its name
            cannot be one.
        OSError: it is missing, a folder, or may not be read.
    """
    refuse_odd(path)
    # Without waiting: between looking and opening it may have become a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_odd(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: Path, limit: int = LARGEST_JSON) -> bytes:
    """Read a plain file whole.

    Raises:
        OSError: as ``open_plain``; or it holds more than ``limit`` bytes.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise NotPlainError(path, f"it is larger than {limit:,} bytes")
        return file.read(size)


def read_plain_text(path: Path, limit: int = LARGEST_JSON) -> str:
    """Read a plain file of UTF-8 text.

    Raises:
        OSError: as ``read_plain``.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_plain(path, limit).decode("utf-8")


def refuse_odd(path: Path) -> None:
    """Refuse what is not a plain file, before a library opens it by its name.

    Raises:
        OSError: as ``open_plain``.
    """
    _refuse_odd(path, _status(path))


def refuse_odd_files(folder: Path) -> None:
    """Refuse a folder in which something is neither a file nor a folder, before others read it.

    Raises:
        NotPlainError: naming the first such thing.
        OSError: the folder cannot be read.
    """
    for path in sorted(folder.iterdir()):
        try:
            status = path.stat()
        except FileNotFoundError:  # a link that leads nowhere is a missing file
            continue
        if not stat.S_ISDIR(status.st_mode):
            _refuse_odd(path, status)


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except ValueError:  # a zero byte, or letters that no file system has
        raise NotPlainError(path, "no file can have this name") from None


def _refuse_odd(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None and not stat.S_ISREG(status.st_mode):
        kind = "no file"
    if kind is None and status.st_dev in _live_devices():
        kind = "a view of the kernel's"
    if kind is not None:
        raise NotPlainError(path, f"it is {kind}, not a plain file")


def _live_devices() -> set[int]:
    found = set()
    for place in _LIVE:
        try:
            found.add(os.stat(place).st_dev)
        except OSError:
            continue
    return found - {os.stat("/").st_dev}
