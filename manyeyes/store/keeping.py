"""Keeps what a stage needs to continue in the bucket: a killed pod takes its disk with it.

Design decisions:

- A state is a folder ``state/step-N`` of the work directory that appears by rename and does not
  change. A thread of the process that runs the stage sees new ones and sends the newest; training
  does not wait for it and knows nothing of it, nor do the ranks that write the states.
- In the bucket a state is its files by md5 and, written last, a record that lists them. A state
  without its record, or with a file that does not have the digests of the record, does not count:
  the newest whole one continues. The two newest are kept.
- The curve so far goes with it; what it has beyond the state's step is cut when training continues.
- A bucket that does not answer never stops a stage that runs: the state is on this disk too.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from manyeyes.artifact.files import CURVES_FILE
from manyeyes.artifact.manifest import STATES, FileEntry, RelativeName
from manyeyes.errors import ManyeyesError
from manyeyes.store.backend import copy_file
from manyeyes.store.bucket import Bucket
from manyeyes.store.content import Store
from manyeyes.store.s3 import S3Backend
from manyeyes.store.transfer import download, read_digests, send

logger = logging.getLogger(__name__)
KEPT = 2
WATCH_SECONDS = 1.0


class StateRecord(BaseModel):
    """One state in the bucket."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    files: dict[RelativeName, FileEntry]
    """Paths relative to the work directory."""


class Keeper:
    """The states of one stage, by its fingerprint."""

    def __init__(self, bucket: Bucket, fingerprint: str) -> None:
        self._bucket = bucket
        self._prefix = f"{STATES}/{fingerprint[:32]}"
        self._sent = -1

    def bring(self, work: Path) -> int | None:
        """Put the newest whole state into ``work`` unless that has one as new; return its step."""
        newest = max((step for step, _ in states(work)), default=-1)
        for step in sorted(self._records(), reverse=True):
            if step <= newest:
                return None
            try:
                self._fetch(step, work)
            except (FileNotFoundError, ValidationError, ValueError) as error:
                logger.warning("the kept state of step %d is not whole: %s", step, error)
                continue
            self._sent = step
            return step
        return None

    def send_newest(self, work: Path) -> None:
        """Send the newest state if it was not sent yet; one that is replaced meanwhile is left."""
        step, folder = max(states(work), default=(-1, work))
        if step <= self._sent:
            return
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        curve = work / CURVES_FILE
        with suppress(FileNotFoundError):
            files = {path.relative_to(work).as_posix(): self._send(path) for path in paths}
            if curve.is_file():
                files[CURVES_FILE] = self._send_growing(
                    curve, folder.with_name(f".{folder.name}.curve")
                )
            if not folder.is_dir():
                return
            record = StateRecord(step=step, files=files)
            self._bucket.write(self._record_key(step), record.model_dump_json().encode())
            self._sent = step
            self._tidy()

    def clear(self) -> None:
        """Remove everything: the stage is finished and its result stored."""
        try:
            for key in list(self._bucket.keys(f"{self._prefix}/")):
                self._bucket.delete(key)
        except ManyeyesError as error:
            logger.warning("the states below %s could not be removed: %s", self._prefix, error)

    def _send(self, path: Path) -> FileEntry:
        digests = read_digests(path)
        key = self._object_key(digests.entry)
        if self._bucket.size(key) != digests.entry.size:
            send(self._bucket, path, key, digests)
        return digests.entry

    def _send_growing(self, path: Path, copy: Path) -> FileEntry:
        """Send a file to which another process appends: as it is now."""
        try:
            copy_file(path, copy, sync=False)
            return self._send(copy)
        finally:
            copy.unlink(missing_ok=True)

    def _fetch(self, step: int, work: Path) -> None:
        record = StateRecord.model_validate_json(self._bucket.read(self._record_key(step)))
        final = work / STATES / f"step-{step}"
        fetched = work / STATES / f".step-{step}.fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        try:
            for name, entry in record.files.items():
                self._fetch_file(entry, fetched / name)
            if (fetched / CURVES_FILE).exists() and not (work / CURVES_FILE).exists():
                (work / CURVES_FILE).parent.mkdir(parents=True, exist_ok=True)
                (fetched / CURVES_FILE).replace(work / CURVES_FILE)
            (fetched / STATES / final.name).rename(final)
        finally:
            shutil.rmtree(fetched, ignore_errors=True)

    def _fetch_file(self, entry: FileEntry, target: Path) -> None:
        """Fetch one file.

        Raises:
            ValueError: its digests are not those of the record.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        download(self._bucket, self._object_key(entry), target, entry.size)
        if read_digests(target).entry != entry:
            raise ValueError(f"{target.name} does not match its digests")

    def _records(self) -> dict[int, str]:
        """Return the steps of the records in the bucket, with their keys."""
        found = {}
        for key in self._bucket.keys(f"{self._prefix}/step-"):
            number = key.removeprefix(f"{self._prefix}/step-").removesuffix(".json")
            if number.isdigit():
                found[int(number)] = key
        return found

    def _tidy(self) -> None:
        """Remove all but the newest states and the files that only they had."""
        records = self._records()
        kept = sorted(records, reverse=True)[:KEPT]
        needed = {records[step] for step in kept}
        for step in kept:
            record = StateRecord.model_validate_json(self._bucket.read(records[step]))
            needed |= {self._object_key(entry) for entry in record.files.values()}
        for key in list(self._bucket.keys(f"{self._prefix}/")):
            if key not in needed:
                self._bucket.delete(key)

    def _record_key(self, step: int) -> str:
        return f"{self._prefix}/step-{step}.json"

    def _object_key(self, entry: FileEntry) -> str:
        return f"{self._prefix}/{entry.md5}"


def states(work: Path) -> list[tuple[int, Path]]:
    """Return the states in a work directory with their steps."""
    folder = work / STATES
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        number = path.name.removeprefix("step-")
        if path.name.startswith("step-") and number.isdigit():
            found.append((int(number), path))
    return found


def keeper(store: Store, fingerprint: str) -> Keeper | None:
    """Return the keeper of a stage's states; None where the work directory itself stays."""
    match store.backend:
        case S3Backend(bucket=bucket):
            return Keeper(bucket, fingerprint)
        case _:
            return None


@contextmanager
def kept(keeper: Keeper | None, work: Path) -> Iterator[None]:
    """Keep a stage's states while it runs; the newest is sent before an error or a signal ends it.

    Args:
        keeper: where they are kept; None keeps none.
        work: the stage's work directory, into which the newest kept state was brought if need be.
    """
    if keeper is None:
        yield
        return
    keeper.bring(work)
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(keeper, work, ended), daemon=True)
    watcher.start()
    try:
        yield
    except BaseException:
        ended.set()
        watcher.join()
        _send(keeper, work)
        raise
    finally:
        ended.set()
    watcher.join()


def _watch(keeper: Keeper, work: Path, ended: threading.Event) -> None:
    while not ended.wait(WATCH_SECONDS):
        _send(keeper, work)


def _send(keeper: Keeper, work: Path) -> None:
    try:
        keeper.send_newest(work)
    except (ManyeyesError, OSError) as error:
        logger.warning("the state in %s could not be kept in the store: %s", work, error)
