"""The records of a pipeline run, gathered from pods that share no disk.

Each step leaves what it recorded (how it ended, its curves and facts for tracking) below
``runs/<run>/`` in the bucket; the steps that need the records of others, ``register`` and the exit
handler, bring them. So one process sends a run's records to the tracking server, as on a laptop.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from manyeyes.artifact.manifest import atomic_write_bytes
from manyeyes.errors import ManyeyesError
from manyeyes.runtime.home import STAGE_RECORDS
from manyeyes.store.content import Store
from manyeyes.store.s3 import S3Backend

logger = logging.getLogger(__name__)
GATHERED = (STAGE_RECORDS, "track", "summary.json")
"""What of a run's directory is records; logs and journals stay where they are."""
_LOCKS = ".lock"


class Records:
    """The records of one run: here and in the bucket. Does nothing where the store is a folder."""

    def __init__(self, store: Store, run: str, directory: Path) -> None:
        self._backend = store.backend
        self._prefix = f"runs/{run}"
        self._directory = directory
        self._known = {path: _md5(path) for path in self._files()}

    def bring(self) -> None:
        """Fetch the records of other steps; what is here stays as it is."""
        if not isinstance(self._backend, S3Backend):
            return
        for key in list(self._backend.bucket.keys(f"{self._prefix}/")):
            path = self._directory / key.removeprefix(f"{self._prefix}/")
            if path.resolve().is_relative_to(self._directory.resolve()) and not path.exists():
                atomic_write_bytes(path, self._backend.read(key))
                self._known[path] = _md5(path)

    def send(self) -> None:
        """Send the records that were written here since the start; a failure is only logged."""
        try:
            for path in self._files():
                if self._known.get(path) != _md5(path):
                    name = path.relative_to(self._directory).as_posix()
                    self._backend.write(f"{self._prefix}/{name}", path.read_bytes())
        except (ManyeyesError, OSError) as error:
            logger.warning("the records of this step did not reach the store: %s", error)

    def _files(self) -> list[Path]:
        if not isinstance(self._backend, S3Backend):
            return []
        found = [self._directory / name for name in GATHERED]
        inside = [path for folder in found for path in folder.rglob("*")]
        return [path for path in (*found, *inside) if path.is_file() and path.suffix != _LOCKS]


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
