"""The Dataset artifact: pictures in tar shards, samples in one parquet index.

Design decisions:

- Tar shards are plain, uncompressed and deterministic (no times, no users), and the index holds
  each picture's offset: random access is one ``pread``, and any tar tool can still read them.
  A million loose files would be slow to copy, hash and store.
- ``pread`` has no shared position, so one open Dataset serves many processes and threads; only
  its path is pickled, and each process opens its own files.
- Each picture's sha256 stands in the index and is compared on every read: a hash of 5 kB costs
  microseconds, a silently wrong picture costs a training run.
- The shards are files of the folder, or stay in a bucket and are read by ranges
  (``manyeyes.data.dataset.shards``); nothing else here knows which.
- An index is data written by others: a shard name that leaves the dataset's folder, by ``..`` or
  by a symbolic link, is refused.
- ``samples.parquet`` appears last, by rename; the manifest that makes the folder an artifact is
  the runner's affair (``manyeyes.artifact.manifest``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from manyeyes.artifact.files import ANNOTATIONS_FILE, SAMPLES_FILE
from manyeyes.data.dataset.annotation import EMPTY_CELL, Annotation, SceneObject, grid_words
from manyeyes.data.dataset.images import MAX_PIXELS, BadPictureError, decode, decode_for_model
from manyeyes.data.dataset.index import Index
from manyeyes.data.dataset.sample import (
    IMAGE_PLACEHOLDER,
    MAX_FILE_BYTES,
    SAMPLE_COLUMNS,
    SPLITS,
    ImageRef,
    Sample,
    Turn,
)
from manyeyes.data.dataset.shards import open_shards, portions
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    import pyarrow as pa
    from PIL import Image

    from manyeyes.data.dataset.images import Picture
    from manyeyes.data.dataset.index import Samples
    from manyeyes.data.dataset.shards import Shards

__all__ = [
    "EMPTY_CELL",
    "IMAGE_PLACEHOLDER",
    "SPLITS",
    "Annotation",
    "Dataset",
    "DatasetWriter",
    "ImageRef",
    "Sample",
    "SceneObject",
    "Turn",
    "grid_words",
]


@dataclass
class Dataset:
    """A dataset folder, open for reading. Cheap to make; everything is read on first use."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Open the dataset in folder ``path``.

        Raises:
            UserError: if it holds no finished index.
        """
        if not (path / SAMPLES_FILE).is_file():
            raise UserError(
                f"{path}: this is not a finished dataset, {SAMPLES_FILE} is missing; "
                "make one with 'manyeyes data starter'."
            )
        return cls(path)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path only: file handles and caches are each process's own."""
        return {"path": self.path}

    def table(self) -> pa.Table:
        """Read the raw index, for those who check it row by row.

        Raises:
            UserError: if it is no parquet file or lacks a column.
        """
        table = _read_parquet(self.path / SAMPLES_FILE)
        missing = [name for name in SAMPLE_COLUMNS if name not in table.column_names]
        if missing:
            raise UserError(
                f"{self.path / SAMPLES_FILE}: the column {missing[0]} is missing; "
                "make the dataset again."
            )
        return table.select(list(SAMPLE_COLUMNS))

    def samples(
        self,
        split: str | None = None,
        tasks: Collection[str] | None = None,
        exclude: Collection[str] = (),
    ) -> Samples:
        """Choose samples, in index order; each is read when it is asked for.

        Args:
            split: only this split; all if None.
            tasks: only these tasks; all if None.
            exclude: sample ids to leave out (the quarantined ones).

        Raises:
            UserError: if the index cannot be read.
        """
        return self._index.samples(split, tasks, exclude)

    def images(self, split: str | None = None) -> dict[str, ImageRef]:
        """Map picture id to place, for every picture some sample of the split shows."""
        return {ref.id: ref for ref in self.samples(split).pictures()}

    def ahead(self, refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Yield pictures that are read next, in order: those of a bucket are fetched together.

        Raises:
            UserError: a shard is missing.
            ManyeyesError: the bucket does not answer.
        """
        for portion in portions(refs):
            self._shards.ahead(portion)
            yield from portion

    def read_bytes(self, ref: ImageRef) -> bytes:
        """Read a picture's file as it was stored.

        Raises:
            BadPictureError: the shard is too short there, or was changed.
            UserError: the shard is missing, outside the dataset, or cannot be read.
            ManyeyesError: the shard lies in a bucket that does not answer.
        """
        shards, problem = self._shards, ""
        for attempt in range(shards.attempts):
            data = b"" if _is_absurd(ref) else shards.read(ref, again=attempt > 0)
            problem = _problem(data, ref)
            if not problem:
                return data
        raise BadPictureError(f"{shards.where(ref)}: {problem}; {shards.advice}.")

    def read_image(self, ref: ImageRef, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Read and decode a picture to RGB.

        Raises:
            UserError: as :meth:`read_bytes` and :func:`manyeyes.data.dataset.images.decode`.
        """
        return decode(self.read_bytes(ref), f"{ref.id} in {ref.shard}", max_pixels)

    def read_for_model(self, ref: ImageRef, max_pixels: int = MAX_PIXELS) -> Picture:
        """Read and decode a picture that a model is to see: a JPEG to values (height, width, 3).

        Raises:
            BadPictureError: as :meth:`read_bytes` and :func:`manyeyes.data.dataset.images.decode`.
            UserError: as :meth:`read_bytes`.
            ManyeyesError: as :meth:`read_bytes`.
        """
        return decode_for_model(self.read_bytes(ref), f"{ref.id} in {ref.shard}", max_pixels)

    def pictures(self, refs: Iterable[ImageRef]) -> Iterator[Picture]:
        """Yield pictures as a model sees them, in order; those of a bucket are fetched together.

        Raises:
            UserError: as :meth:`read_for_model`.
            ManyeyesError: as :meth:`read_for_model`.
        """
        return map(self.read_for_model, self.ahead(refs))

    def annotations(self, split: str | None = None) -> dict[str, Annotation]:
        """Map picture id to what it shows; empty for data that came without annotations."""
        path = self.path / ANNOTATIONS_FILE
        if not path.is_file():
            return {}
        rows = _read_parquet(path).to_pylist()
        return {row["image"]: _annotation(row) for row in rows if split in (None, row["split"])}

    def close(self) -> None:
        """Close the shards; the dataset can still be used and opens them again."""
        self._shards.close()

    @cached_property
    def _index(self) -> Index:
        return Index(self.path / SAMPLES_FILE)

    @cached_property
    def _shards(self) -> Shards:
        return open_shards(self.path)


def _is_absurd(ref: ImageRef) -> bool:
    """Say whether an index gives a picture a place or a size that no picture has."""
    return ref.offset < 0 or not 0 <= ref.size <= MAX_FILE_BYTES


def _problem(data: bytes, ref: ImageRef) -> str:
    """Say what is wrong with the bytes of a picture, if anything is."""
    if ref.size > MAX_FILE_BYTES:
        return f"the index gives it {ref.size:,} bytes, more than a picture has"
    if len(data) != ref.size:
        return "the shard ends before the picture"
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        return "the bytes do not have the recorded sha256"
    return ""


def _annotation(row: dict[str, Any]) -> Annotation:
    objects = tuple(
        SceneObject(thing["kind"], thing["label"], thing["colour"], tuple(thing["box"]))
        for thing in row["objects"]
    )
    return Annotation(row["image"], row["split"], row["kind"], objects)


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: this is not a readable parquet file; fetch or make the dataset again."
        ) from error
