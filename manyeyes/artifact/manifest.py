"""Artifacts: a directory is finished when, and only when, it holds a ``manifest.json``.

Three kinds exist: Dataset, Checkpoint, Report. The manifest is written last, by atomic rename, and
lists the size and digests of every file, so that a killed run can never be taken for a whole one
and a damaged file is noticed when the artifact is opened. sha256 guards the content; md5 is kept
beside it because it is DVC's key for the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue, StringConstraints

from manyeyes.artifact.files import MEASUREMENTS, REPORT_FILE
from manyeyes.errors import UserError
from manyeyes.runtime.json_files import parse_json
from manyeyes.runtime.plain_files import open_plain, read_plain_text, refuse_odd
from manyeyes.steps import ArtifactKind, Task

MANIFEST = "manifest.json"
FORMAT = 1
NOT_CONTENT = (f"{MEASUREMENTS}/", REPORT_FILE)
"""Files that tell how a run went (times, rates). They are listed and checked like all others, but
two runs that made the same weights at another speed have the same content digest."""
_ADVICE = "fetch the artifact again or run its stage again."
STATES = "state"
"""Folder of a work directory from which a killed stage continues; never a part of its result."""
TEMPORARY = ".*.tmp"
"""Pattern of the names under which files are written before they are renamed."""
POINTER = "pointer.json"
"""The one file of a folder that stands for an artifact in the store (``store.pointer``)."""
REMOTE = "remote.json"
"""Beside an artifact whose large files stayed in the bucket: where they are (``store.ranges``)."""
UNFINISHED = "manyeyes-unfinished"
"""Written first into every folder that is ours before it is finished (``destination``)."""
_OURS = (MANIFEST, POINTER, REMOTE, UNFINISHED)
"""Names that mean something in a folder, and so are never names of content."""
DETACHED = ("signature", "signature.json", "model.sig")
"""Signatures are made after the manifest, which cannot list them; nothing here reads them. So are
files called after it, like ``manifest.json.asc``."""


def is_relative_name(name: str) -> bool:
    """Say whether a text can name a file within a folder, and no other file anywhere."""
    path = PurePosixPath(name)
    try:
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    except UnicodeEncodeError:
        return False
    return (
        0 < longest <= 255
        and len(os.fsencode(name)) < 4000
        and str(path) == name
        and not path.is_absolute()
        and ".." not in path.parts
        and "\0" not in name
    )


def _relative(name: str) -> str:
    if not is_relative_name(name):
        raise ValueError("it does not name a file within the folder")
    return name


Md5 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
"""A sha256, or nothing for what no recipe made."""
PartName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)
]
"""Name of a stage or an expert, which becomes a part of file names."""
RelativeName = Annotated[str, AfterValidator(_relative)]
"""Path of a file within its folder. These types are what a text from a file must be before it
becomes a part of a path."""


class FileEntry(BaseModel):
    """Size in bytes and digests of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: Sha256
    md5: Md5


class Header(BaseModel):
    """What is known of an artifact before its files are counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ArtifactKind
    stage: PartName
    name: PartName
    """Name of the expert for ``prealign``, otherwise of the stage."""
    recipe_slice: str
    """sha256 of the canonical JSON of the recipe slice."""
    fingerprint: Fingerprint
    """sha256 over code, recipe slice and parents' content: the key of every cache."""
    parents: dict[str, Sha256]
    """Role to content digest; the experts of a mixture have the roles ``expert.NAME``."""
    code: str
    """Digest of the versions of the stage and its parts, and of code that is not in the lock."""
    revision: str
    """Version control revision, ``+dirty`` when the tree had changes; ``unknown`` without one."""
    libraries: dict[str, str]
    seed: int
    details: dict[str, JsonValue] = {}

    @property
    def task(self) -> Task:
        """What of the pipeline made it."""
        return Task.named(self.stage, self.name)


class Manifest(Header):
    """A finished artifact's description."""

    format: int
    files: dict[str, FileEntry]

    @property
    def digest(self) -> str:
        """Digest of the content alone: equal files give equal digests, whoever made them."""
        lines = [
            f"{path}\0{entry.sha256}"
            for path, entry in sorted(self.files.items())
            if not path.startswith(NOT_CONTENT)
        ]
        return hashlib.sha256("\n".join([self.kind, *lines]).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def write_manifest(directory: Path, header: Header) -> Manifest:
    """Hash every file below ``directory`` and write the manifest, last and atomically.

    What lies in ``STATES`` is left out: a stage keeps its states until its manifest stands, so that
    a kill while the files are hashed costs no training.
    """
    names = (path.relative_to(directory) for path in iter_files(directory))
    files = {
        name.as_posix(): hash_file(directory / name) for name in names if name.parts[0] != STATES
    }
    manifest = Manifest(**header.model_dump(), format=FORMAT, files=files)
    atomic_write_text(directory / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def is_finished(directory: Path) -> bool:
    """Say whether a directory holds a manifest."""
    return (directory / MANIFEST).is_file()


def open_artifact(directory: Path, kind: ArtifactKind, *, verify: bool = True) -> Manifest:
    """Read an artifact's manifest and check its files.

    Args:
        directory: where the artifact lies.
        kind: what the caller needs.
        verify: compare size and sha256 of every file; sizes alone when False.

    Raises:
        UserError: missing, unfinished, of another kind, damaged, or with a file that the manifest
            does not list: whoever reads the folder might take it for a part of the artifact.
    """
    manifest = read_manifest(directory)
    if manifest.kind != kind:
        raise UserError(
            f"{directory} holds a {manifest.kind} (made by {manifest.stage}), "
            f"but a {kind} is needed."
        )
    for name, entry in manifest.files.items():
        _check_file(directory / name, entry, verify=verify)
    extra = next(unlisted(directory, manifest), None)
    if extra is not None:
        raise UserError(
            f"{directory} holds {extra}, which its {MANIFEST} does not list: take it out, or fetch "
            "the artifact again."
        )
    return manifest


def unlisted(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the files in an artifact's folder that its manifest does not list, but signatures.

    A link to a folder is one of them, unless it holds files that are listed.
    """
    folders = {str(parent) for name in manifest.files for parent in PurePosixPath(name).parents}
    for place, inside, names in os.walk(directory):
        inside.sort()
        here = Path(place).relative_to(directory)
        for name in sorted(names):
            path = (here / name).as_posix()
            if path not in manifest.files and not is_detached(path):
                yield path
        links = [(here / name).as_posix() for name in inside if (Path(place) / name).is_symlink()]
        yield from (path for path in links if path not in folders)


def is_detached(name: str) -> bool:
    """Say whether a file belongs beside a manifest that does not list it."""
    return name == MANIFEST or name in DETACHED or name.startswith(f"{MANIFEST}.")


def read_manifest(directory: Path) -> Manifest:
    """Read a manifest without looking at the files it lists.

    Raises:
        UserError: there is no directory, no manifest, or not one of this format.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise UserError(f"No artifact at {directory}: there is no such directory.")
    try:
        text = read_plain_text(path)
    except FileNotFoundError:
        raise UserError(
            f"{directory} is not a finished artifact: it has no {MANIFEST}. "
            "Run the stage that makes it again; it continues where it stopped."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"Cannot read {path} ({reason}); {_ADVICE}") from None
    return parse_manifest(text, path)


def parse_manifest(text: str, path: Path) -> Manifest:
    """Read a manifest's text; ``path`` is for the message. Another format is told from damage.

    Raises:
        UserError: it is not a manifest of this format, or lists a file outside its directory.
    """
    try:
        found = parse_json(text)
        given = found.get("format") if isinstance(found, dict) else None
        if isinstance(given, int) and given != FORMAT:
            raise UserError(
                f"{path} has format {given}, but this manyeyes reads {FORMAT}; "
                "use the version that wrote it."
            )
        _refuse_names(path, found)
        return Manifest.model_validate_json(text)
    except ValueError:
        raise UserError(
            f"{path} is damaged: it is not a manifest of format {FORMAT}; {_ADVICE}"
        ) from None


def _refuse_names(path: Path, found: object) -> None:
    """Refuse a manifest that lists what is not a file of its folder."""
    files = found.get("files") if isinstance(found, dict) else None
    for name in files if isinstance(files, dict) else ():
        if not is_relative_name(name) or name in _OURS:
            raise UserError(
                f"{path} was changed: it lists {_short(name)}, which lies outside; {_ADVICE}"
            )


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _check_file(path: Path, entry: FileEntry, *, verify: bool) -> None:
    try:
        refuse_odd(path)
        size = path.stat().st_size
        same = size == entry.size and (not verify or hash_file(path).sha256 == entry.sha256)
    except FileNotFoundError:
        raise UserError(f"{path} is missing, though the manifest lists it; {_ADVICE}") from None
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}); {_ADVICE}") from None
    if size != entry.size:
        raise UserError(f"{path} has {size} bytes, but the manifest says {entry.size}; {_ADVICE}")
    if not same:
        raise UserError(f"{path} does not match the sha256 in the manifest; {_ADVICE}")


def hash_file(path: Path) -> FileEntry:
    """Return size, sha256 and md5 of a plain file, read once; OSError if it is none."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with open_plain(path) as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return FileEntry(size=size, sha256=sha256.hexdigest(), md5=md5.hexdigest())


def iter_files(directory: Path) -> Iterator[Path]:
    """Yield the files of an artifact in a stable order, without the manifest."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path != directory / MANIFEST:
            yield path


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: JsonValue) -> None:
    """Write readable JSON with sorted keys atomically."""
    atomic_write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
