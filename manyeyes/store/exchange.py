"""Moving artifacts by hand: out of the store by any of their names, and into it."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from manyeyes.artifact.destination import claim_folder
from manyeyes.artifact.manifest import MANIFEST, POINTER, Manifest, open_artifact, read_manifest
from manyeyes.errors import UserError
from manyeyes.runtime.home import home
from manyeyes.runtime.locks import held
from manyeyes.runtime.plain_files import read_plain
from manyeyes.steps import STEPS
from manyeyes.store.content import Store
from manyeyes.store.pointer import read_pointer
from manyeyes.store.settings import open_named, open_store

_DIRECTORY_ID = r"[0-9a-f]{32}\.dir"
_DIGEST = r"[0-9a-f]{64}"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclass(frozen=True)
class Pushed:
    """What was put into the store."""

    store: str
    digest: str
    dir_id: str
    name: str | None
    """What a recipe calls the dataset."""
    pointer: Path
    """DVC's pointer, for version control."""


def pull(what: str, out: Path | None = None) -> Path:
    """Bring an artifact from the store.

    Args:
        what: content digest, fingerprint, ``<md5>.dir``, or the path of a pointer: a folder with
            ``pointer.json``, that file, or a ``.dvc`` file.
        out: where it shall lie; by default beside a ``.dvc`` file as DVC would put it, else a
            folder named by the first 12 digits of its digest.

    Returns:
        Where it lies.

    Raises:
        UserError: the store has no such artifact, or ``out`` holds something else.
        DamagedObjectError: an object of it is missing or damaged.
    """
    store, dir_id = find(what)
    manifest = store.manifest(dir_id)
    if out is None:
        path = Path(what)
        out = path.with_suffix("") if path.suffix == ".dvc" else Path(manifest.digest[:12])
    _refuse_other(out, manifest)
    claim_folder(out, digest=manifest.digest)
    store.checkout(dir_id, out)
    return out


def push(directory: Path, name: str | None = None) -> Pushed:
    """Put a finished artifact into the store, and write DVC's pointer beside it.

    A result of a stage is remembered by its fingerprint, so that no machine makes it again. A
    dataset that was imported gets a name, by which recipes take it.

    Raises:
        UserError: no whole artifact, a name that cannot be used, or one with other content.
    """
    manifest = open_artifact(directory, read_manifest(directory).kind)
    named = None
    if manifest.kind == "dataset" and not manifest.fingerprint:
        named = name or directory.absolute().name
        if not re.fullmatch(_NAME, named):
            raise UserError(
                f"{named!r} cannot be a dataset's name: use letters, digits, '.', '_' and '-' "
                "with --name."
            )
    elif name:
        raise UserError(
            f"{directory} was made by the stage {manifest.stage} of a recipe and is found by its "
            "fingerprint: leave --name out."
        )
    store = open_store()
    lock = home() / f"locks/push-{uuid.uuid4().hex}.lock"
    with held(lock, optional=True):  # gc leaves alone what it touches
        dir_id = store.put(directory, manifest)
        if named:
            store.name(named, dir_id, manifest.digest)
        known = manifest.stage in {step.name for step in STEPS}
        store.remember(manifest.fingerprint if known else "", dir_id, manifest.digest)
        pointer = store.export_pointer(dir_id, directory.absolute())
    return Pushed(store.where, manifest.digest, dir_id, named, pointer)


def is_name(text: str) -> bool:
    """Say whether a text is written as a name in the store: a digest, or a pointer that is here."""
    path = Path(text)
    if path.is_dir():
        return (path / POINTER).is_file()
    if path.is_file():
        return path.suffix == ".dvc" or path.name == POINTER
    return re.fullmatch(rf"{_DIRECTORY_ID}|{_DIGEST}", text) is not None


def find(what: str) -> tuple[Store, str]:
    """Return the store that has what a text names, and its directory id there.

    Raises:
        UserError: no store has it, or the text is no name in a store.
    """
    path, store = Path(what), open_store()
    if re.fullmatch(_DIRECTORY_ID, what):
        return store, what
    if re.fullmatch(_DIGEST, what):
        entry = store.find(what) or store.lookup(what)
        if entry is not None:
            return store, entry.dir_id
        raise UserError(
            f"The content store {store.where} has nothing whole with the digest or fingerprint "
            f"{what}."
        )
    if path.suffix == ".dvc" and path.is_file():
        found = re.search(_DIRECTORY_ID, read_plain(path).decode("utf-8", errors="replace"))
        if found:
            return store, found[0]
    pointer = read_pointer(path) if path.suffix != ".dvc" else None
    if pointer is not None:
        return (store if store.is_remote else open_named(pointer.store)), pointer.dir_id
    raise UserError(
        f"{what!r} names nothing in a content store: give a content digest (64 digits), "
        f"<md5>.dir, or the path of a {POINTER}, its folder, or a .dvc file."
    )


def _refuse_other(out: Path, manifest: Manifest) -> None:
    """Refuse to write over anything but an artifact with this content, or an empty folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        there = Manifest.model_validate_json((out / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        there = None
    if there is None or there.digest != manifest.digest:
        raise UserError(f"{out} exists and holds something else: give another folder with --out.")
