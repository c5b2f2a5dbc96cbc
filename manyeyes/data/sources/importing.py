"""Import conversations and pictures in LLaVA's format as a Dataset artifact.

Design decisions:

- Everything is checked on the way in, pictures included: each is found below its folder and only
  there (a path with ``..``, an absolute one, a symbolic link that leads out are refused), measured
  by its header, and decoded. What was imported can be trained on.
- The dataset is built beside its place and renamed, manifest last: a refused or killed import
  leaves nothing that a later run could take for a dataset, and the next import of that name removes
  what a kill left.
- Equal pictures are stored once, whatever they are called.
- Every bad record is found before anything is said. Without a quarantine they are all told, the
  first ones in full. With one, they are put aside with their reasons, up to the share the user
  allows.
"""

from __future__ import annotations

import hashlib
import math
import sys
import unicodedata
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import JsonValue

from manyeyes.artifact.destination import beside, claim_folder
from manyeyes.artifact.files import QUARANTINE_FILE
from manyeyes.artifact.manifest import Manifest
from manyeyes.data.dataset.finish import finish_dataset
from manyeyes.data.dataset.images import MAX_PIXELS, decode, is_turned, read_size
from manyeyes.data.dataset.quarantine import QuarantineRow, write_quarantine
from manyeyes.data.dataset.sample import MAX_FILE_BYTES, ImageRef, Sample
from manyeyes.data.dataset.texts import LONGEST_NAME, is_whole, name_problem, printable
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.sources.json_values import BrokenListError, RecordError, Value, read_values
from manyeyes.data.sources.llava import Reader, Record
from manyeyes.errors import UserError, shown
from manyeyes.runtime.disk import ELSEWHERE, full_disk, no_room
from manyeyes.runtime.plain_files import read_plain, refuse_odd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NOTES = (
    "literal_placeholders",
    "lookalikes",
    "control_tokens",
    "ids_numbered",
    "pictures_turned",
)
"""What is told of an import where there is any of it, beside the placeholders that were added."""
MOST_TOLD = 20
"""Bad records that are told in full."""


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
    notes: Counter[str] = field(default_factory=Counter)
    """What the user should know of the records that were taken, each with its number."""
    tokens: Counter[str] = field(default_factory=Counter)
    """What is spelled like a control token to the number of samples that have it."""

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
        self._note(record)

    def _note(self, record: Record) -> None:
        """Count what is remarkable about a record that was taken."""
        self.notes["placeholders_added"] += record.num_placeholders_added
        self.notes["literal_placeholders"] += record.num_literal_placeholders
        self.notes["lookalikes"] += bool(record.lookalike)
        self.notes["control_tokens"] += bool(record.control_tokens)
        self.notes["ids_numbered"] += record.numbered
        self.tokens.update(dict.fromkeys(record.control_tokens, 1))

    def _read(self, record: Record, path: str) -> bytes:
        """Read and decode one picture."""
        where = f"{record.where}, image {shown(path)}"
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
            self.notes["pictures_turned"] += is_turned(data)
        return self.pictures[digest]


def import_llava(
    conversations: Path,
    images: Path,
    out: Path,
    *,
    licence: str,
    source: str | None = None,
    quarantine: float = 0.0,
    number_ids: bool = False,
) -> Manifest:
    """Import a LLaVA JSON or JSON lines file as a Dataset artifact.

    Args:
        conversations: the JSON file, a list of records; or ``.jsonl``, one a line.
        images: folder that the records' image paths refer to.
        out: the dataset's folder; must not exist.
        licence: SPDX name of the data's licence.
        source: name of the source, and the task of records without one; the file's name if None.
        quarantine: largest share of bad records to put aside in ``quarantine.parquet``; with 0 any
            bad record is an error.
        number_ids: an id that was used before gets a number instead of being refused.

    Returns:
        The finished dataset's manifest.

    Raises:
        UserError: the input is wrong or ``out`` cannot be written; nothing is left behind.
    """
    name = source or conversations.stem
    _check_arguments(images, out, quarantine, {"licence": licence, "source": name})
    data = _read(conversations)
    origin = (
        f"imported from {printable(conversations.name)}, sha256 {hashlib.sha256(data).hexdigest()}"
    )
    reader = Reader(conversations, number_ids)
    with _disk_errors(out), beside(out) as work:
        with DatasetWriter(work) as writer:
            writer.add_source(name, licence, origin)
            state = _Import(images, writer, licence, name)
            _add_all(state, reader, read_values(conversations, data), quarantine)
        write_quarantine(work / QUARANTINE_FILE, state.bad)
        return finish_dataset(work, out, seed=0, details=_details(state, reader))


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
    if "\0" in path:
        raise RecordError("image_path", where, "its path holds a NUL character; take it out.")
    if ".." in relative.parts:
        raise RecordError(
            "image_path", where, f"its path leads outside with '..'; keep it below {images}."
        )
    file = images / relative
    if not file.exists():
        raise RecordError("image_missing", where, _missing(images, relative))
    if not file.resolve().is_relative_to(images.resolve()):
        raise RecordError(
            "image_path", where, f"a symbolic link leads outside {images}; copy the file there."
        )
    try:
        refuse_odd(file)
    except OSError:
        raise RecordError(
            "image_missing", where, "it is not a plain file; give a picture."
        ) from None
    if file.stat().st_size > MAX_FILE_BYTES:
        raise RecordError(
            "image", where, f"it is larger than {MAX_FILE_BYTES} bytes; make it smaller."
        )
    return file


def _missing(images: Path, relative: PurePosixPath) -> str:
    """Say that a file is not there, and under which similar name it is."""
    if "\\" in relative.name and (images / relative.as_posix().replace("\\", "/")).exists():
        return f"there is no such file in {images}; separate its folders by '/', not by '\\'."
    place = images
    for part in relative.parts:
        if not (place / part).exists():
            break
        place /= part
    found = _names(place.absolute(), place.stat().st_mtime_ns).get(_folded(part))
    if found is None:
        return f"there is no such file in {images}; add it."
    if unicodedata.normalize("NFC", found) == unicodedata.normalize("NFC", part):
        how = "the same letters made of other characters (Unicode NFC against NFD)"
    else:
        how = "other capitals or spaces"
    return (
        f"there is no such file in {images}, but there is {shown(found)}, {how}; write both alike."
    )


@lru_cache(maxsize=64)
def _names(folder: Path, _changed: int) -> dict[str, str]:
    """Return the names in a folder, as it is since a change, by what is alike in similar ones."""
    try:
        return {_folded(path.name): path.name for path in sorted(folder.iterdir())}
    except OSError:
        return {}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


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


def _check_arguments(images: Path, out: Path, quarantine: float, names: dict[str, str]) -> None:
    if not images.is_dir():
        raise UserError(f"There is no folder of images at {images}; check --images.")
    claim_folder(out, replace=False)
    if not names["licence"].strip():
        raise UserError("The licence is empty: give the SPDX name of the data's with --licence.")
    for what, name in names.items():
        problem = name_problem(name)
        if problem:
            raise UserError(f"The {what} {shown(name)} {problem}; give another with --{what}.")
    if not 0.0 <= quarantine <= 1.0:
        raise UserError(f"--quarantine is {quarantine:g}; give a share from 0 to 1.")


def _read(path: Path) -> bytes:
    try:
        return read_plain(path, sys.maxsize)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; check the path.") from None


def _add_all(state: _Import, reader: Reader, values: Iterable[Value], quarantine: float) -> None:
    """Add every record, or put it aside.

    Raises:
        UserError: more are bad than the user allows, or the list breaks.
    """
    total = 0
    try:
        for found in values:
            total += 1
            try:
                state.add(reader.read(found))
            except RecordError as error:
                name = _name(found)
                state.bad.append(QuarantineRow(name, error.reason, printable(str(error))))
    except BrokenListError as error:
        before = ["Before that, records that cannot be used either:", *_lines(state.bad)]
        raise UserError("\n".join([str(error), *(before if state.bad else ())])) from None
    if not total:
        raise UserError(f"{reader.file} holds no records; export it again.")
    if len(state.bad) > quarantine * total or len(state.bad) == total:
        raise UserError(_told(state.bad, total, quarantine))


def _name(found: Value) -> str:
    """Return what a record that was put aside is called: its id, or its number."""
    raw = found.value.get("id") if isinstance(found.value, dict) else None
    usable = isinstance(raw, str | int) and is_whole(str(raw)) and len(str(raw)) < LONGEST_NAME
    return str(raw) if usable else str(found.number)


def _told(bad: Sequence[QuarantineRow], total: int, quarantine: float) -> str:
    """Tell of all bad records at once."""
    if total == 1:
        return bad[0].detail
    share = len(bad) / total
    said = f"{len(bad)} of {total} records ({share:.1%}) cannot be used"
    if 0 < quarantine < share:
        said += f", more than --quarantine {quarantine:g} allows"
    what = "it" if len(bad) == 1 else "them"
    remedy = f"correct {what}"
    if len(bad) < total:
        remedy += f", or put {what} aside with --quarantine {math.ceil(share * 1000) / 1000:g}"
    return "\n".join([*_lines(bad), f"{said}: {remedy}."])


def _lines(bad: Sequence[QuarantineRow]) -> list[str]:
    """Tell of the first bad records in full, and of the others by their reasons."""
    lines = [row.detail for row in bad[:MOST_TOLD]]
    rest = Counter(row.reason for row in bad[MOST_TOLD:])
    if rest:
        counts = ", ".join(f"{reason} {number}" for reason, number in rest.most_common())
        lines.append(f"and {rest.total()} more ({counts})")
    return lines


def _details(state: _Import, reader: Reader) -> dict[str, JsonValue]:
    details: dict[str, JsonValue] = {
        "samples": state.counts.total(),
        "images": len(state.pictures),
        "counts": dict(sorted(state.counts.items())),
        "quarantined": len(state.bad),
        "placeholders_added": state.notes["placeholders_added"],
    }
    found: dict[str, JsonValue] = {
        "quarantine_reasons": dict(Counter(row.reason for row in state.bad).most_common()),
        **{name: state.notes[name] for name in NOTES},
        "control_token_spellings": dict(state.tokens.most_common(MOST_TOLD)),
        "keys_not_read": {
            printable(key): number for key, number in reader.not_read.most_common(MOST_TOLD)
        },
    }
    return details | {name: value for name, value in found.items() if value}


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
