"""Whether a result can be put in a place, told before it is made.

Whose a folder is, and its mode, do not tell: root may write everywhere, but not to a disk that is
mounted to be read, nor to /proc and /sys. So something is written there, and taken away.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from manyeyes.errors import UserError
from manyeyes.runtime.disk import full_disk
from manyeyes.runtime.locks import scratch

ELSEWHERE = "give another folder with --out."
PROBE = ".manyeyes-probe."


def unusable(path: Path, error: OSError) -> UserError:
    """Build the error of a place that the system refuses."""
    name = str(path)
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    return UserError(f"Cannot write to {shown} ({error.strerror}); {ELSEWHERE}")


def unmovable(out: Path, error: OSError) -> UserError:
    """Build the error of a folder that cannot be renamed."""
    return UserError(
        f"Cannot put a folder in the place of {out} ({error.strerror}): name one within it, or "
        f"{ELSEWHERE}"
    )


def refuse_unwritable(out: Path, real: Path, option: str = "--out") -> None:
    """Make a folder where one will have to be made, and take it away.

    Args:
        out: as the user named it.
        real: the folder that is written to; it need not exist.
        option: of the command line, which names another place.

    Raises:
        UserError: it cannot be made.
    """
    parent = next(path for path in [real, *real.parents] if os.path.lexists(path))
    if not parent.is_dir():
        raise UserError(
            f"Cannot write to {out}: {parent} is not a folder; give another folder with {option}."
        )
    try:
        with scratch(parent, PROBE):
            pass
    except OSError as error:
        if full_disk(error) is not None:
            raise
        raise UserError(
            f"Cannot write to {out}: {parent} is not writable; choose another folder with {option}."
        ) from None


def refuse_fixed(out: Path, real: Path) -> None:
    """Refuse a folder that cannot be moved to make room for the result.

    Raises:
        UserError: another disk is mounted there, or it may not be written.
    """
    if os.path.ismount(real):
        raise unmovable(out, OSError(errno.EBUSY, os.strerror(errno.EBUSY)))
    if real.is_dir() and not os.access(real, os.W_OK):
        raise UserError(
            f"Cannot write to {out}: {real} is not writable; choose another folder with --out."
        )
