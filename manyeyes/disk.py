"""What a disk that refuses a write says, as one sentence.

A full disk shows itself in three ways (the disk, a quota, a limit on the size of a file) and from
two directions: as an ``OSError``, or inside the text of an error of a library that writes by itself
(safetensors). Whoever knows what the user typed explains it, with ``explained``; the command line
explains what nobody else did.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manyeyes.errors import ManyeyesError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AGAIN = "and run the same command again; what was finished is kept."
"""What to do where a run continues."""
ELSEWHERE = "or give another folder with --out."
"""What to do where nothing is kept of an unfinished result."""


def full_disk(error: BaseException) -> int | None:
    """Return the error's number if it says that there is no room to write, else None."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (inside := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(inside[1])  # how Rust's standard library ends its texts
    return number if number in FULL else None


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
