"""The sha256 of a file, computed once and remembered by the file's size, times and number.

What a recipe reads from outside may be large, and it is asked for by every ``explain``. A file that
changed a moment ago is not remembered: it could change once more within the clock's grain.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from manyeyes.artifact.manifest import atomic_write_json
from manyeyes.runtime.home import home

SETTLED_SECONDS = 2.0


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    facts = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    name = hashlib.sha256(str(path.absolute()).encode(errors="surrogateescape")).hexdigest()
    note = home() / "digests" / f"{name[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(note.read_text(encoding="ascii"))
        if kept["facts"] == facts:
            return str(kept["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(state.st_mtime, state.st_ctime) > SETTLED_SECONDS:
        with suppress(OSError):  # a home that cannot be written costs time and nothing else
            atomic_write_json(note, {"facts": list(facts), "sha256": digest})
    return digest
