"""The store in a bucket, with this node's cache in front of it.

The keys are those of the folder, so that plain ``dvc pull`` works from the bucket as it does from
the folder. The index lies in the bucket too: a pod finds what another pod made.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.errors import UserError
from manyeyes.store.layout import md5_of
from manyeyes.store.retry import StoreRequestError
from manyeyes.store.transfer import download, upload

if TYPE_CHECKING:
    from pathlib import Path

    from manyeyes.artifact.manifest import FileEntry
    from manyeyes.store.bucket import Bucket
    from manyeyes.store.cache import Cache

PARALLEL = 8


@dataclass(frozen=True)
class S3Backend:
    """A bucket and a cache."""

    bucket: Bucket
    cache: Cache

    @property
    def where(self) -> str:
        """``s3://bucket/prefix``."""
        return str(self.bucket.address)

    @property
    def parallel(self) -> int:
        """Objects at a time."""
        return PARALLEL

    def size(self, key: str) -> int | None:
        """Return the object's bytes, or None if there is no such object."""
        return self.bucket.size(key)

    def read(self, key: str) -> bytes:
        """Return a small object whole; FileNotFoundError if there is none."""
        return self.bucket.read(key)

    def write(self, key: str, data: bytes) -> None:
        """Store a small object; S3 shows it whole or not at all."""
        self.bucket.write(key, data)

    def put_file(self, source: Path, key: str) -> FileEntry:
        """Send a file if its md5 is the key's."""
        return upload(self.bucket, source, key, md5_of(key))

    def get_file(self, key: str, target: Path, *, link: bool = False) -> FileEntry:
        """Bring an object to ``target`` through the cache."""
        size = self.bucket.size(key)
        if size is None:
            raise FileNotFoundError(key)

        def fill(partial: Path) -> None:
            download(self.bucket, key, partial, size)

        return self.cache.take(md5_of(key), size, fill, target, link=link)

    def set_aside(self, key: str) -> None:
        """Move a damaged object to ``damaged/``; one that we may not move stays where it is."""
        with suppress(FileNotFoundError, UserError, StoreRequestError):
            self.bucket.copy(key, f"damaged/{md5_of(key)}.{uuid.uuid4().hex[:8]}")
            self.bucket.delete(key)
