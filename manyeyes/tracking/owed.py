"""What MLflow has not been told yet: one small file per pipeline run that has something to send.

The file is written before the first record of a run, and removed when everything was sent; so
whatever is killed, or away, in between leaves it, and the next command finds it without reading
the spool. It belongs to the store that was meant: what was recorded for a server that is away does
not go to another one. A sender takes the file first (``sending``), so that what is recorded while
it sends is owed anew.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from manyeyes.errors import UserError
from manyeyes.runtime.home import OWED, home
from manyeyes.tracking.store import Store, locate

NEW, SENDING = "new", "sending"
NOWHERE = "anywhere"
"""Stands for the store where ``MLFLOW_TRACKING_URI`` names none: the next one named takes it."""


def note(pipeline: str) -> None:
    """Write down that a pipeline run has something to send; a disk that refuses is no error."""
    with contextlib.suppress(OSError):
        path = _folder(_present_key()) / NEW / safe_name(pipeline)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def pipelines(store: Store) -> list[str]:
    """Return the pipeline runs that have something to send to ``store``."""
    names: set[str] = set()
    for key in (store.key, NOWHERE):
        for state in (NEW, SENDING):
            with contextlib.suppress(OSError):
                names.update(path.name for path in (_folder(key) / state).iterdir())
    return sorted(names)


def take(pipeline: str, store: Store) -> None:
    """Begin to send what a pipeline run owes."""
    name = safe_name(pipeline)
    for key in (store.key, NOWHERE):
        place = _folder(store.key) / SENDING / name
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            (_folder(key) / NEW / name).replace(place)


def settle(pipeline: str, store: Store) -> None:
    """Forget what was taken: all of it was sent."""
    with contextlib.suppress(OSError):
        (_folder(store.key) / SENDING / safe_name(pipeline)).unlink(missing_ok=True)


def safe_name(text: str) -> str:
    """Return ``text`` with everything but letters, digits, ``.``, ``_`` and ``-`` replaced."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".") or "_"


def _folder(key: str) -> Path:
    return home() / OWED / key


def _present_key() -> str:
    try:
        return locate().key
    except UserError:
        return NOWHERE
