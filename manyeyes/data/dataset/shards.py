"""Where a dataset's shards are read from: files of its folder, or objects of a bucket by ranges.

Both give the same bytes for the same place, and ``Dataset`` compares the picture's sha256 whichever
it was. What is wrong with a place is not: a picture cut off or changed is the picture's affair; a
shard that is missing, a disk or a bucket that fails, is an error of the whole.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from manyeyes.data.dataset.sample import SHARDS_FOLDER
from manyeyes.errors import UserError
from manyeyes.runtime.plain_files import refuse_odd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from manyeyes.data.dataset.sample import ImageRef
    from manyeyes.store.ranges import RemoteFiles, Span


AHEAD_BYTES = 32 * 1024 * 1024
"""Pictures that are made ready together: less than a reader from a bucket keeps."""


class Shards(Protocol):
    """Bytes of shards. Safe for many threads."""

    attempts: int
    """How often a picture whose bytes are wrong is worth reading."""
    advice: str
    """What to do about a picture that stays wrong."""

    def where(self, ref: ImageRef) -> str:
        """Name a picture and its place, for messages."""

    def ahead(self, refs: Iterable[ImageRef]) -> None:
        """Make ready for these pictures, which are read next.

        Raises:
            UserError: a shard is missing.
            ManyeyesError: the bucket does not answer.
        """

    def read(self, ref: ImageRef, *, again: bool = False) -> bytes:
        """Return ``ref.size`` bytes from ``ref.offset`` on, fewer where the shard ends before.

        Args:
            ref: the place.
            again: the bytes that came before were wrong; keep none of them.

        Raises:
            UserError: the shard is missing, outside the dataset, or cannot be read.
            ManyeyesError: the bucket does not answer.
        """

    def close(self) -> None:
        """Let go of what is open; reading opens it again."""


def portions(refs: Iterable[ImageRef]) -> Iterator[list[ImageRef]]:
    """Yield pictures, in order, as many as are made ready together."""
    portion: list[ImageRef] = []
    room = AHEAD_BYTES
    for ref in refs:
        room -= ref.size
        if portion and room < 0:
            yield portion
            portion, room = [], AHEAD_BYTES - ref.size
        portion.append(ref)
    if portion:
        yield portion


def open_shards(folder: Path) -> Shards:
    """Return how the shards of the dataset in ``folder`` are read; nothing is opened yet.

    Raises:
        UserError: what says where they are cannot be read.
    """
    from manyeyes.store.ranges import RemoteFiles
    from manyeyes.store.settings import open_store, shards_are_remote

    # A file that came with the data must not decide where they are read, nor who sees our keys.
    remote = RemoteFiles.read(folder) if shards_are_remote() else None
    if remote is None or remote.store != open_store().where:
        return LocalShards(folder)
    return RemoteShards(remote)


class LocalShards:
    """Files below the dataset's folder."""

    attempts = 1
    advice = "fetch it again"

    def __init__(self, folder: Path) -> None:
        """Open nothing yet."""
        self.folder = folder
        self._files: dict[str, int] = {}

    def where(self, ref: ImageRef) -> str:
        """Name a picture and its file."""
        return f"{ref.id} in {self.folder / SHARDS_FOLDER / ref.shard}"

    def ahead(self, refs: Iterable[ImageRef]) -> None:
        """Do nothing: the system reads ahead."""

    def read(self, ref: ImageRef, *, again: bool = False) -> bytes:  # noqa: ARG002 - of the protocol
        """Read from the file; as :meth:`Shards.read`."""
        handle = self._handle(ref)
        try:
            # What the index says of sizes is asked of the file before memory is.
            there = os.fstat(handle).st_size - ref.offset
            return os.pread(handle, max(0, min(ref.size, there)), ref.offset)
        except OSError as error:  # a disk or a file server that fails: the next read may not
            raise UserError(
                f"{self.where(ref)}: the shard cannot be read ({error.strerror}); check the disk, "
                "then run the same command again."
            ) from error

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _handle(self, ref: ImageRef) -> int:
        """Return an open descriptor of the picture's shard."""
        if ref.shard not in self._files:
            folder = (self.folder / SHARDS_FOLDER).resolve()
            path = (folder / ref.shard).resolve()
            if path.parent != folder:
                raise UserError(
                    f"{ref.id}: its shard {ref.shard!r} lies outside "
                    f"{self.folder / SHARDS_FOLDER}; shards are files in that folder."
                )
            try:
                refuse_odd(path)
                self._files[ref.shard] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                raise UserError(
                    f"{self.folder / SHARDS_FOLDER / ref.shard}: the shard cannot be opened "
                    f"({error.strerror}); fetch or make the dataset again."
                ) from error
        return self._files[ref.shard]


class RemoteShards:
    """Objects of the content store's bucket."""

    attempts = 3
    advice = "unset MANYEYES_SHARDS, so that the whole shard is fetched, checked and made anew"

    def __init__(self, remote: RemoteFiles) -> None:
        """Send nothing yet; the client is made when it is first needed."""
        from manyeyes.store.bucket import Address, Bucket
        from manyeyes.store.ranges import RemoteReader

        self.store = remote.store
        self._reader = RemoteReader(Bucket(Address.parse(remote.store)), remote.files)

    def where(self, ref: ImageRef) -> str:
        """Name a picture, its shard and the store."""
        return f"{ref.id} in {SHARDS_FOLDER}/{ref.shard} in the content store {self.store}"

    def ahead(self, refs: Iterable[ImageRef]) -> None:
        """Fetch the pictures, neighbours with one request; as :meth:`Shards.ahead`."""
        refs = tuple(refs)
        try:
            self._reader.ahead(self._span(ref) for ref in refs)
        except FileNotFoundError as error:
            shards = ", ".join(sorted({ref.shard for ref in refs}))
            raise self._missing(f"One of the shards {shards}") from error

    def read(self, ref: ImageRef, *, again: bool = False) -> bytes:
        """Take a picture from what is kept, or fetch it; as :meth:`Shards.read`."""
        try:
            return self._reader.read(self._span(ref), again=again)
        except FileNotFoundError as error:
            raise self._missing(f"The shard {ref.shard}") from error

    def close(self) -> None:
        """Do nothing: connections are the client's, which other readers share."""

    def _span(self, ref: ImageRef) -> Span:
        from manyeyes.store.ranges import Span

        name = f"{SHARDS_FOLDER}/{ref.shard}"
        if name not in self._reader.files:
            raise UserError(
                f"{ref.id}: its shard {ref.shard!r} is no file of the dataset in the content store "
                f"{self.store}; make the dataset again."
            )
        return Span(name, ref.offset, ref.size)

    def _missing(self, what: str) -> UserError:
        return UserError(
            f"{what} is no longer in the content store {self.store}: run the pipeline again, which "
            "makes the dataset anew."
        )
