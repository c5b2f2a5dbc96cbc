"""Files of an artifact that stay in the bucket, read a piece at a time.

Design decisions:

- A checkout may leave large files behind. ``remote.json`` in its folder says where they are: the
  store's address and each file's md5 and size. A path is thus still all that a reader needs, and
  all that is sent to another process.
- Whoever needs several pieces says so beforehand (:meth:`RemoteReader.ahead`): pieces that lie
  close to each other come in one request, and the requests are made at a time.
- Bytes are not believed here, and not judged either: an object's md5 cannot be compared with a
  piece of it. Who reads knows the digest of its piece, and may ask for it anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from manyeyes.artifact.manifest import REMOTE, Md5, RelativeName, atomic_write_text
from manyeyes.errors import UserError
from manyeyes.runtime.plain_files import read_plain_text
from manyeyes.store.layout import object_key
from manyeyes.store.pool import each

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from manyeyes.store.bucket import Bucket

GAP_BYTES = 64 * 1024
"""Bytes between two pieces that are rather fetched than asked around: at 100 MB/s they take less
than a millisecond, which no request does. It is no larger because bandwidth is shared."""
RUN_BYTES = 8 * 1024 * 1024
"""Pieces are not joined beyond this: a broken request is repeated whole."""
CACHE_BYTES = 64 * 1024 * 1024
"""Pieces kept in memory, for each process that reads."""
PARALLEL = 8
"""Requests at a time."""


class RemoteFile(BaseModel):
    """One file that stayed in the bucket."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    md5: Md5
    size: int


class RemoteFiles(BaseModel):
    """What ``remote.json`` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    store: str
    """``s3://bucket/prefix``."""
    files: dict[RelativeName, RemoteFile]
    """By path within the artifact."""

    def write(self, folder: Path) -> None:
        """Write it into an artifact's folder."""
        atomic_write_text(folder / REMOTE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RemoteFiles | None:
        """Return what lies in an artifact's folder; None if nothing stayed behind.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return cls.model_validate_json(read_plain_text(folder / REMOTE))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, UnicodeDecodeError):
            raise UserError(
                f"{folder / REMOTE} does not say which files stayed in the content store; "
                "run the stage again."
            ) from None


@dataclass(frozen=True, order=True)
class Span:
    """A piece of a file."""

    file: str
    start: int
    length: int

    @property
    def stop(self) -> int:
        """The first byte behind it."""
        return self.start + self.length


@dataclass(frozen=True)
class Run:
    """Pieces of one file that are fetched with one request, by their start."""

    spans: tuple[Span, ...]

    @property
    def whole(self) -> Span:
        """From the first byte of any piece to the last."""
        first = self.spans[0]
        stop = max(span.stop for span in self.spans)
        return Span(first.file, first.start, stop - first.start)


def join(spans: Iterable[Span]) -> list[Run]:
    """Join pieces that lie close to each other: gaps up to ``GAP_BYTES``, up to ``RUN_BYTES``."""
    groups: list[list[Span]] = []
    for span in sorted(set(spans)):
        if groups and _joins(Run(tuple(groups[-1])).whole, span):
            groups[-1].append(span)
        else:
            groups.append([span])
    return [Run(tuple(group)) for group in groups]


def _joins(before: Span, span: Span) -> bool:
    return (
        span.file == before.file
        and span.start - before.stop <= GAP_BYTES
        and max(span.stop, before.stop) - before.start <= RUN_BYTES
    )


class RemoteReader:
    """Reads pieces of files that stayed in the bucket. Safe for many threads."""

    def __init__(
        self, bucket: Bucket, files: Mapping[str, RemoteFile], limit: int = CACHE_BYTES
    ) -> None:
        """Send nothing yet; keep up to ``limit`` bytes of pieces."""
        self.bucket = bucket
        self.files = files
        self.limit = limit
        self._kept: OrderedDict[Span, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def ahead(self, spans: Iterable[Span]) -> None:
        """Fetch pieces that are read next, as far as they fit into what is kept.

        Raises:
            FileNotFoundError: an object is not in the bucket.
            ManyeyesError: the bucket does not answer, or refuses.
        """
        with self._lock:
            missing = [span for span in spans if span not in self._kept]
        chosen, room = [], self.limit
        for run in join(span for span in missing if self._is_inside(span)):
            room -= sum(span.length for span in run.spans)
            if room < 0:
                break
            chosen.append(run)
        for run, data in zip(chosen, each(self._fetch_run, chosen, PARALLEL), strict=True):
            for span in run.spans:
                begin = span.start - run.spans[0].start
                self._keep(span, data[begin : begin + span.length])

    def read(self, span: Span, *, again: bool = False) -> bytes:
        """Return a piece; it is shorter where the object ends before.

        Args:
            span: the piece.
            again: ask the bucket, whatever is kept: what came before was wrong.

        Raises:
            FileNotFoundError: the object is not in the bucket.
            ManyeyesError: the bucket does not answer, or refuses.
        """
        with self._lock:
            data = None if again else self._kept.get(span)
            if data is not None:
                self._kept.move_to_end(span)
        if data is None:
            data = self._fetch(span) if self._is_inside(span) else b""
            self._keep(span, data)
        return data

    def _is_inside(self, span: Span) -> bool:
        return span.start >= 0 < span.length and span.stop <= self.files[span.file].size

    def _fetch_run(self, run: Run) -> bytes:
        return self._fetch(run.whole)

    def _fetch(self, span: Span) -> bytes:
        key = object_key(self.files[span.file].md5)
        return self.bucket.read_range(key, span.start, span.length)

    def _keep(self, span: Span, data: bytes) -> None:
        """Keep a piece in place of those used longest ago; one that is not whole is not kept."""
        with self._lock:
            self._bytes -= len(self._kept.pop(span, b""))
            if len(data) != span.length or len(data) > self.limit:
                return
            self._kept[span] = data
            self._bytes += len(data)
            while self._bytes > self.limit:
                self._bytes -= len(self._kept.popitem(last=False)[1])
