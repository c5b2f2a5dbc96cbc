"""Write a Dataset folder: the same samples always give the same bytes.

Design decisions:

- Shards are cut by size, in the order pictures are added, with a ustar header that holds nothing
  of the machine, user or hour. Two builds can be compared by digest, and DVC stores them once.
- ``samples.parquet`` is written last and renamed into place: without it the folder is no dataset.
  Opening a writer removes what a broken-off build left.
- Each picture's header is read on the way in, so the index cannot disagree with the bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any, BinaryIO

from manyeyes.artifact.files import ANNOTATIONS_FILE, SAMPLES_FILE, SOURCES_FILE
from manyeyes.data.dataset.images import identify, read_size
from manyeyes.data.dataset.sample import (
    SHARDS_FOLDER,
    ImageRef,
    Sample,
    conversations_to_json,
)
from manyeyes.errors import UserError
from manyeyes.runtime.disk import full_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    import pyarrow as pa

    from manyeyes.data.dataset.annotation import Annotation

SHARD_SIZE = 64 * 1024 * 1024
"""Bytes after which a new shard begins."""

_BLOCK = 512
_LONGEST_ID = 90
"""A ustar name field holds 100 bytes, suffix included."""


class DatasetWriter:
    """Context manager that fills ``directory``; leaving it without an error finishes the index."""

    def __init__(self, directory: Path, shard_size: int = SHARD_SIZE) -> None:
        """Start afresh in ``directory``: an index and shards already there are removed.

        Raises:
            UserError: if the folder cannot be written.
        """
        self.directory = directory
        self.shard_size = shard_size
        self._samples: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._sources: dict[str, dict[str, str]] = {}
        self._ids: set[str] = set()
        self._shard: BinaryIO | None = None
        self._num_shards = 0
        with _explained(directory):
            (directory / SHARDS_FOLDER).mkdir(parents=True, exist_ok=True)
            for name in (SAMPLES_FILE, ANNOTATIONS_FILE, SOURCES_FILE):
                (directory / name).unlink(missing_ok=True)
            for path in (directory / SHARDS_FOLDER).glob("images-*.tar"):
                path.unlink()

    def __enter__(self) -> DatasetWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the index, or leave the folder unfinished if something went wrong."""
        if kind is None:
            self.close()
        elif self._shard is not None:
            # Broken off: what is buffered need not reach the disk, which may be what is full.
            with contextlib.suppress(OSError):
                self._shard.close()
            self._shard = None

    def add_source(self, name: str, licence: str, provenance: str) -> None:
        """Describe a source for ``sources.json``; its samples and pictures are counted."""
        self._sources[name] = {"licence": licence, "provenance": provenance}

    def add_image(self, data: bytes, image_id: str) -> ImageRef:
        """Append a picture file and return its place.

        Raises:
            UserError: if it is no readable picture, or the id is taken or cannot name a tar member.
            OSError: if the disk is full.
        """
        suffix = identify(data, image_id).suffix
        width, height = read_size(data, image_id)
        self._claim(image_id)
        if len(image_id.encode()) > _LONGEST_ID or "/" in image_id or image_id.startswith("."):
            raise UserError(
                f"{image_id}: a picture id is at most {_LONGEST_ID} bytes, without '/' and without "
                "a leading '.'; rename it."
            )
        info = tarfile.TarInfo(image_id + suffix)
        info.size = len(data)
        with _explained(self.directory):
            shard, file = self._open_shard(len(data))
            file.write(info.tobuf(format=tarfile.USTAR_FORMAT))
            offset = file.tell()
            file.write(data)
            file.write(b"\0" * (-len(data) % _BLOCK))
        digest = hashlib.sha256(data).hexdigest()
        return ImageRef(image_id, shard, offset, len(data), digest, width, height)

    def add(self, sample: Sample) -> None:
        """Append a sample; its pictures must have been added before.

        Raises:
            UserError: if its id is taken.
        """
        self._claim(sample.id)
        self._samples.append(
            {
                "id": sample.id,
                "split": sample.split,
                "task": sample.task,
                "subset": sample.subset,
                "conversations": conversations_to_json(sample.turns),
                "images": [vars(image) for image in sample.images],
                "answers": list(sample.answers),
                "source": sample.source,
                "licence": sample.licence,
                "entities": list(sample.entities),
            }
        )

    def add_annotation(self, annotation: Annotation) -> None:
        """Append what one picture shows."""
        objects = [
            {
                "kind": thing.kind,
                "label": thing.label,
                "colour": thing.colour,
                "box": [round(float(edge), 2) for edge in thing.box],
            }
            for thing in annotation.objects
        ]
        self._annotations.append(
            {
                "image": annotation.image,
                "split": annotation.split,
                "kind": annotation.kind,
                "objects": objects,
            }
        )

    def close(self) -> None:
        """Finish the shards, then the annotations and sources, then the index.

        Raises:
            OSError: if the disk is full.
        """
        text = json.dumps(self._counted_sources(), indent=2, sort_keys=True) + "\n"
        with _explained(self.directory):
            self._close_shard()
            if self._annotations:
                self._write_table(ANNOTATIONS_FILE, self._annotations, _annotation_schema())
            (self.directory / SOURCES_FILE).write_text(text, encoding="utf-8")
            self._write_table(SAMPLES_FILE, self._samples, _sample_schema())

    def _claim(self, name: str) -> None:
        if name in self._ids:
            raise UserError(f"{name}: two pictures or samples have this id; give each its own.")
        self._ids.add(name)

    def _open_shard(self, size: int) -> tuple[str, BinaryIO]:
        """Return the shard to write the next ``size`` bytes to."""
        if self._shard is not None and self._shard.tell() + size > self.shard_size:
            self._close_shard()
        if self._shard is None:
            name = f"images-{self._num_shards:05d}.tar"
            self._shard = (self.directory / SHARDS_FOLDER / name).open("wb")
            self._num_shards += 1
        return f"images-{self._num_shards - 1:05d}.tar", self._shard

    def _close_shard(self) -> None:
        if self._shard is None:
            return
        with self._shard as shard:
            # Two empty blocks end a tar file (POSIX.1, pax, "ustar Interchange Format").
            shard.write(b"\0" * (2 * _BLOCK))
            shard.flush()
            os.fsync(shard.fileno())
        self._shard = None

    def _counted_sources(self) -> dict[str, dict[str, str | int]]:
        counted: dict[str, dict[str, str | int]] = {}
        for row in self._samples:
            name = row["source"]
            about = self._sources.get(name, {"licence": row["licence"], "provenance": ""})
            entry = counted.setdefault(name, {**about, "samples": 0, "images": 0})
            entry["samples"] = int(entry["samples"]) + 1
        images = {ref["id"]: row["source"] for row in self._samples for ref in row["images"]}
        for name in images.values():
            counted[name]["images"] = int(counted[name]["images"]) + 1
        return counted

    def _write_table(self, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        """Write a parquet file beside its final name and rename it: whole or absent."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.directory / name
        unfinished = path.with_suffix(".unfinished")
        pq.write_table(pa.Table.from_pylist(rows, schema), unfinished, compression="zstd")
        unfinished.replace(path)


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Say what a failed write means; a full disk is explained by who knows what the user typed."""
    try:
        yield
    except OSError as error:
        if full_disk(error) is not None:
            raise
        raise UserError(
            f"{directory}: the dataset cannot be written here ({error.strerror or error}); "
            "choose another folder."
        ) from error


def _sample_schema() -> pa.Schema:
    import pyarrow as pa

    image = pa.struct(
        [
            ("id", pa.string()),
            ("shard", pa.string()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
            ("sha256", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
        ]
    )
    return pa.schema(
        [
            ("id", pa.string()),
            ("split", pa.string()),
            ("task", pa.string()),
            ("subset", pa.string()),
            ("conversations", pa.string()),
            ("images", pa.list_(image)),
            ("answers", pa.list_(pa.string())),
            ("source", pa.string()),
            ("licence", pa.string()),
            ("entities", pa.list_(pa.string())),
        ]
    )


def _annotation_schema() -> pa.Schema:
    import pyarrow as pa

    thing = pa.struct(
        [
            ("kind", pa.string()),
            ("label", pa.string()),
            ("colour", pa.string()),
            ("box", pa.list_(pa.float32())),
        ]
    )
    return pa.schema(
        [
            ("image", pa.string()),
            ("split", pa.string()),
            ("kind", pa.string()),
            ("objects", pa.list_(thing)),
        ]
    )
