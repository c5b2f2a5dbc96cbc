"""Import conversations and pictures in LLaVA's format as a Dataset artifact.

Design decisions:

- Everything is checked on the way in, pictures included: each is found below its folder and only
  there (a path with ``..``, an absolute one, a symbolic link that leads out are refused), measured
  by its header, and decoded. What was imported can be trained on.
- The dataset is built beside its place and renamed, manifest last: a refused or killed import
  leaves nothing that a later run could take for a dataset, and the next import of that name removes
  what a kill left.
- Equal pictures are stored once, whatever they are called.
- Without a quarantine the first bad record ends the import. With one, bad records are put aside
  with their reasons, up to the share the user allows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import JsonValue

from manyeyes.artifact import Manifest, hash_file
from manyeyes.data.finish import finish_dataset
from manyeyes.data.images import MAX_PIXELS, decode, read_size
from manyeyes.data.llava import Reader, Record, RecordError, read_values
from manyeyes.data.quarantine import QuarantineRow, write_quarantine
from manyeyes.data.sample import ImageRef, Sample
from manyeyes.data.writer import DatasetWriter
from manyeyes.disk import ELSEWHERE, full_disk, no_room
from manyeyes.errors import UserError
from manyeyes.locks import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILE_BYTES = 256 * 1024 * 1024
"""A larger file is no picture to learn from."""


@dataclass
class _Import:
    """One import: what was written and what was put aside."""

    images: Path
    writer: DatasetWriter
    licence: str
    source: str
    pictures: dict[str, ImageRef] = field(default_factory=dict)
    """sha256 to the stored picture."""
    bad: list[QuarantineRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    num_placeholders_added: int = 0

    def add(self, record: Record) -> None:
        """Store one record with its pictures.

        Raises:
            RecordError: a picture cannot be used; nothing of the record is stored.
        """
        found = [(path, self._read(record, path)) for path in record.images]
        task = record.task or self.source
        sample = Sample(
            id=record.id,
            split=record.split,
            task=task,
            subset="",
            turns=record.turns,
            images=tuple(self._store(data) for _, data in found),
            answers=record.answers,
            source=self.source,
            licence=self.licence,
            entities=record.entities,
        )
        self.writer.add(sample)
        self.counts[f"{record.split}.{task}"] += 1
        self.num_placeholders_added += record.num_placeholders_added

    def _read(self, record: Record, path: str) -> bytes:
        """Read and decode one picture."""
        where = f"{record.where}, image {path!r}"
        try:
            data = locate(self.images, path, where).read_bytes()
        except OSError as error:
            raise RecordError(
                "image", where, f"it cannot be read ({error.strerror}); check its path."
            ) from None
        if hashlib.sha256(data).hexdigest() not in self.pictures:
            _check_picture(data, where)
        return data

    def _store(self, data: bytes) -> ImageRef:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self.pictures:
            self.pictures[digest] = self.writer.add_image(data, f"image-{digest[:32]}")
        return self.pictures[digest]


def import_llava(
    conversations: Path,
    images: Path,
    out: Path,
    *,
    licence: str,
    source: str | None = None,
    quarantine: float = 0.0,
) -> Manifest:
    """Import a LLaVA JSON or JSON lines file as a Dataset artifact.

    Args:
        conversations: the JSON file, a list of records; or ``.jsonl``, one a line.
        images: folder that the records' image paths refer to.
        out: the dataset's folder; must not exist.
        licence: SPDX name of the data's licence.
        source: name of the source, and the task of records without one; the file's name if None.
        quarantine: largest share of bad records to put aside in ``quarantine.parquet``; with 0 the
            first bad record is an error.

    Returns:
        The finished dataset's manifest.

    Raises:
        UserError: the input is wrong or ``out`` cannot be written; nothing is left behind.
    """
    _check_arguments(images, out, licence, quarantine)
    name = source or conversations.stem
    origin = f"imported from {conversations.name}, sha256 {_sha256(conversations)}"
    with _disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch(out.parent, f".{out.name}.") as folder:
            work = folder / "dataset"
            with DatasetWriter(work) as writer:
                writer.add_source(name, licence, origin)
                state = _Import(images, writer, licence, name)
                _add_all(state, conversations, quarantine)
            write_quarantine(work / "quarantine.parquet", state.bad)
            return finish_dataset(work, out, seed=0, details=_details(state))


def locate(images: Path, path: str, where: str) -> Path:
    """Return the file of a picture, which must lie below ``images`` and be a plain file.

    Raises:
        RecordError: the path leads elsewhere or to nothing.
    """
    if "://" in path:
        raise RecordError("image_path", where, "it is an address; download it and give its path.")
    relative = PurePosixPath(path)
    if relative.is_absolute():
        raise RecordError(
            "image_path", where, f"its path is absolute; give it relative to {images}."
        )
    if ".." in relative.parts or "\0" in path:
        raise RecordError(
            "image_path", where, f"its path leads outside with '..'; keep it below {images}."
        )
    file = images / relative
    if not file.exists():
        raise RecordError("image_missing", where, f"there is no such file in {images}; add it.")
    if not file.resolve().is_relative_to(images.resolve()):
        raise RecordError(
            "image_path", where, f"a symbolic link leads outside {images}; copy the file there."
        )
    if not file.is_file():
        raise RecordError("image_missing", where, "it is not a plain file; give a picture.")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise RecordError(
            "image", where, f"it is larger than {MAX_FILE_BYTES} bytes; make it smaller."
        )
    return file


def _check_picture(data: bytes, where: str) -> None:
    """Measure a picture by its header, then decode it.

    Raises:
        RecordError: it is not a picture, too large, truncated or damaged.
    """
    try:
        width, height = read_size(data, where)
        if width * height <= MAX_PIXELS:
            decode(data, where)
            return
    except UserError as error:
        raise RecordError("image", where, str(error).removeprefix(f"{where}: ")) from None
    raise RecordError(
        "image_pixels",
        where,
        f"it has {width} x {height} pixels, more than {MAX_PIXELS} in all; make it smaller.",
    )


def _check_arguments(images: Path, out: Path, licence: str, quarantine: float) -> None:
    if not images.is_dir():
        raise UserError(f"There is no folder of images at {images}; check --images.")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already: remove it or give another folder with --out.")
    if not licence.strip():
        raise UserError("The licence is empty: give the SPDX name of the data's with --licence.")
    if not 0.0 <= quarantine <= 1.0:
        raise UserError(f"--quarantine is {quarantine:g}; give a share from 0 to 1.")


def _sha256(path: Path) -> str:
    try:
        return hash_file(path).sha256
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; check the path.") from None


def _add_all(state: _Import, conversations: Path, quarantine: float) -> None:
    """Add every record, or put it aside."""
    reader = Reader(conversations)
    total, first = 0, ""
    for number, value in read_values(conversations):
        total += 1
        try:
            state.add(reader.read(number, value))
        except RecordError as error:
            if quarantine == 0.0:
                raise
            first = first or str(error)
            raw = value.get("id") if isinstance(value, dict) else None
            name = str(number if raw is None else raw)
            state.bad.append(QuarantineRow(name, error.reason, str(error)))
    if not total:
        raise UserError(f"{conversations} holds no records; export it again.")
    if len(state.bad) > quarantine * total or len(state.bad) == total:
        raise UserError(
            f"{len(state.bad)} of {total} records ({len(state.bad) / total:.1%}) are bad, more "
            f"than --quarantine {quarantine:g} allows; the first is {first}"
        )


def _details(state: _Import) -> dict[str, JsonValue]:
    return {
        "samples": state.counts.total(),
        "images": len(state.pictures),
        "counts": dict(sorted(state.counts.items())),
        "quarantined": len(state.bad),
        "placeholders_added": state.num_placeholders_added,
    }


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Turn what the disk says into what the user can do."""
    try:
        yield
    except OSError as error:
        number = full_disk(error)
        if number is not None:
            raise no_room(number, out, ELSEWHERE) from None
        what = "it is not a folder" if _blocks(error) else str(error.strerror)
        raise UserError(
            f"Cannot write to {error.filename or out}: {what}; give another folder with --out."
        ) from None


def _blocks(error: OSError) -> bool:
    """Say whether a file stands where a folder is needed."""
    return isinstance(error, FileExistsError | NotADirectoryError)
