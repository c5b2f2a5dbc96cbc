"""Whom a destination belongs to: a result is written only where nothing of a person's is lost.

A folder is free when it is absent, empty, or holds a finished artifact of ours and nothing else. It
never is the folder somebody stands in, the state directory, the store, a stage's input, or a folder
around one of these. A symbolic link is followed, never replaced. Everything else is one sentence.

A result is made in a scratch folder beside its place (``beside``) and put there by renaming
(``put``), so that a kill leaves the old one or the new one. What is written in place, or stays
unfinished, has a marker (``marker``); a folder without it is somebody's, whatever it is called.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from manyeyes.artifact.manifest import (
    MANIFEST,
    POINTER,
    UNFINISHED,
    Manifest,
    is_finished,
    read_manifest,
    unlisted,
)
from manyeyes.artifact.marker import is_marked
from manyeyes.errors import UserError
from manyeyes.runtime.disk import full_disk
from manyeyes.runtime.home import CACHE, STORE, home
from manyeyes.runtime.json_files import read_json
from manyeyes.runtime.locks import scratch, stale
from manyeyes.runtime.plain_files import read_plain_text
from manyeyes.runtime.writable import (
    ELSEWHERE,
    refuse_fixed,
    refuse_unwritable,
    unmovable,
    unusable,
)

SCRATCH = ("inputs", "kfp", "models")
"""Folders of the state directory in which all results are copies."""
STATE = (
    "cache", "digests", "features", "index", "locks", "mlflow.db", "owed", "packages",
    "mlflow-experiment.lock", "places.jsonl", "registries.jsonl", "store", "submissions.jsonl",
    "tokens", "verified", "work",
)  # fmt: skip
"""What else lies there."""
ATTEMPTS = 100
_CHAIN_BROKEN = (errno.ENOENT, errno.ENOTDIR)
Key = tuple[int, int] | str


def claim_folder(
    out: Path,
    *,
    inputs: Iterable[Path] = (),
    digest: str = "",
    replace: bool = True,
    is_ours: Callable[[Path], bool] | None = None,
    writable: bool = True,
) -> Path:
    """Refuse a folder that a result may not be written to; return the real one behind links.

    Args:
        out: where the result shall lie, as the user named it.
        inputs: what it is made from.
        digest: content digest of the result, where it is known: equal content may be written again.
        replace: a finished result of ours may be replaced.
        is_ours: says of a folder whether all of it is an earlier result that is no artifact.
        writable: it must be possible to write there now.

    Raises:
        UserError: it belongs to somebody, or cannot be written.
    """
    try:
        str(out).encode("utf-8")
    except UnicodeEncodeError:  # no table can be written there
        raise UserError(f"{str(out)!r} is not UTF-8: {ELSEWHERE}") from None
    real = _real(out)
    _refuse_place(out, real, inputs)
    if not _is_scratch(real) and not (is_ours and real.is_dir() and is_ours(real)):
        _refuse_content(out, real, digest, replace=replace)
    if writable:
        refuse_unwritable(out, real.parent)
        refuse_fixed(out, real)
    return real


def claim_file(
    out: Path,
    *,
    inputs: Iterable[Path] = (),
    is_ours: Callable[[str], bool] | None = None,
    option: str = "--out",
    writable: bool = True,
) -> Path:
    """Refuse a file that a result may not be written to; return the real one behind links.

    Args:
        out: the file to write, as the user named it.
        inputs: what it is made from.
        is_ours: says of a file's text whether it is an earlier result, which may be replaced.
        option: of the command line, which names another file.
        writable: it must be possible to write there now.

    Raises:
        UserError: it belongs to somebody, or cannot be written.
    """
    real = _real(out)
    for given in inputs:
        if _key(real) in _chain(_real(given)):
            raise UserError(f"Cannot write {out}: it is {given}, which is read; choose another.")
    if real.is_dir():
        raise UserError(f"Cannot write {out}: it is a folder; give the path of a file.")
    if _lexists(real) and not _is_replaceable(real, is_ours):
        raise UserError(f"{out} exists already: remove it or name another file with {option}.")
    if writable:
        refuse_unwritable(out, real.parent, option)
    return real


def claim_files(folder: Path, names: Iterable[str], is_ours: Callable[[str], bool]) -> None:
    """Refuse a folder if one of the files to be written there is somebody's; others may lie there.

    Args:
        folder: as the user named it.
        names: of the files.
        is_ours: says of a file's text whether it is an earlier result.

    Raises:
        UserError: it is no folder, holds such a file, or cannot be written.
    """
    real = _real(folder)
    if _lexists(real) and not real.is_dir():
        raise UserError(f"Cannot write to {folder}: it is a file; give the path of a directory.")
    for name in names:
        if _lexists(real / name) and not _is_replaceable(_real(real / name), is_ours):
            raise UserError(
                f"Cannot write to {folder}: the {name} there is no result of manyeyes; {ELSEWHERE}"
            )
    refuse_unwritable(folder, real)


def claim_run(
    out: Path, results: Iterable[Path], inputs: Iterable[Path] = (), *, writable: bool
) -> None:
    """Refuse a folder of results, in which each has a folder of its own and DVC's pointer.

    What else lies in ``out`` stays. It may be read-only, if nothing needs to be written.

    Raises:
        UserError: one of them belongs to somebody.
    """
    inputs = list(inputs)
    if _key(_real(out)) == _key(_real(home())):
        raise UserError(
            f"Cannot write to {out}: manyeyes keeps its state there ({home()}); {ELSEWHERE}"
        )
    for result in results:
        claim_folder(result, inputs=inputs, writable=writable)
        claim_pointer(result, writable=writable)


def claim_pointer(out: Path, *, writable: bool = True) -> Path:
    """Refuse ``OUT.dvc`` if it is there and no pointer to ``out``; return it otherwise."""
    names = (f"path: {out.name}\n", f"path: {json.dumps(out.name)}\n")
    return claim_file(
        out.with_name(f"{out.name}.dvc"),
        is_ours=lambda text: "outs:" in text and any(name in text for name in names),
        writable=writable,
    )


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """Give an empty folder beside ``out``, of this process alone, that is removed at the end.

    Args:
        out: where the result shall lie; ``put`` moves the folder there.
    """
    real = _real(out)
    name = real.name
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    prefix = f".{name}."
    with ExitStack() as stack:
        try:
            real.parent.mkdir(parents=True, exist_ok=True)
            _restore(real, prefix)
            work = stack.enter_context(scratch(real.parent, prefix))
        except OSError as error:
            if full_disk(error) is not None or error.errno == errno.EROFS:
                raise  # who keeps copies in a state directory that can only be read goes on without
            raise unusable(out, error) from None
        yield work


def put(work: Path, out: Path, *, replace: bool = True) -> None:
    """Put a result made in ``beside(out)`` in the place of what is there, in two renames.

    A kill between them leaves what was there in the folder beside, from which the next one that
    writes to ``out`` brings it back.

    Raises:
        UserError: as ``claim_folder``; the place may have changed since it was asked.
    """
    digest = read_manifest(work).digest if is_finished(work) else ""
    real = claim_folder(out, digest=digest, replace=replace)
    for attempt in range(ATTEMPTS):  # another process may be putting its result there
        try:
            if _lexists(real):
                real.rename(work.parent / f"old-{attempt}")
            work.rename(real)
            return
        except FileNotFoundError:
            if not work.exists():
                raise
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise unmovable(out, error) from None
    raise UserError(f"{out} is written by other processes all the time; {ELSEWHERE}")


def free_place(place: Path) -> Path:
    """Return a path at which nothing lies, near ``place``, for what ``mark`` shall say is ours.

    What is ours there is removed: ``NAME.refused``, or ``NAME.refused-2`` where that is not ours.
    """
    for number in range(1, ATTEMPTS):
        found = place.with_name(f"{place.name}-{number}") if number > 1 else place
        if not _lexists(found):
            return found
        if is_marked(found):
            shutil.rmtree(found)
            return found
    raise UserError(f"There is no room for {place} beside what is there: remove some of it.")


def _real(path: Path) -> Path:
    """Return the absolute path behind all links; what does not exist yet has one too."""
    try:
        real = Path(os.path.realpath(path))
        real.lstat()
    except ValueError:
        raise UserError(f"{str(path)!r} cannot be a path: {ELSEWHERE}") from None
    except OSError as error:
        if error.errno not in _CHAIN_BROKEN:
            raise unusable(path, error) from None
    if real.is_symlink():
        raise UserError(f"Cannot write to {path}: its symbolic link leads in a circle; {ELSEWHERE}")
    return real


def _key(path: Path) -> Key:
    """Tell a place by what it is, not by how it is written; by its name where nothing is yet."""
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino


def _chain(path: Path) -> list[Key]:
    """Return the keys of a place and of all folders around it."""
    return [_key(each) for each in (path, *path.parents)]


def _refuse_place(out: Path, real: Path, inputs: Iterable[Path]) -> None:
    key, around = _key(real), _chain(real)
    if key in _here():
        raise UserError(
            f"Cannot write to {out}: it is the folder you are in, or one around it; {ELSEWHERE}"
        )
    if key in _chain(_real(home())):
        raise UserError(
            f"Cannot write to {out}: manyeyes keeps its state there ({home()}); {ELSEWHERE}"
        )
    for place in _state_places():
        if key in _chain(place) or _key(place) in around:
            raise UserError(
                f"Cannot write to {out}: manyeyes keeps its state there ({place}); {ELSEWHERE}"
            )
    for given in inputs:
        place = _real(given)
        if key in _chain(place) or _key(place) in around:
            raise UserError(
                f"Cannot write to {out}: {given}, which is read, would be lost; {ELSEWHERE}"
            )


def _here() -> list[Key]:
    try:
        return _chain(Path.cwd())
    except OSError:  # somebody removed it
        return []


def _state_places() -> list[Path]:
    """Return what must never be written to, nor within: the parts of the state, and a store."""
    places = [_real(home()) / name for name in STATE]
    store = os.environ.get(STORE, "").strip()
    if os.path.isabs(store):
        root = _real(Path(store))
        places += [root, root.with_name("index"), root.with_name("locks")]
    cache = os.environ.get(CACHE, "").strip()
    return places + ([_real(Path(cache))] if cache else [])


def _is_scratch(real: Path) -> bool:
    """Say whether a folder lies where the state directory keeps copies."""
    around = _chain(real.parent)
    return any(_key(_real(home()) / name) in around for name in SCRATCH)


def _refuse_content(out: Path, real: Path, digest: str, *, replace: bool) -> None:
    if not _lexists(real):
        return
    if not real.is_dir():
        raise UserError(f"Cannot write to {out}: it is a file; give the path of a directory.")
    try:
        names = sorted(os.listdir(real))
    except OSError as error:
        raise unusable(out, error) from None
    if not names:
        return
    if not replace:
        raise UserError(f"{out} exists already: remove it or {ELSEWHERE}")
    if is_marked(real) or (names == [POINTER] and _is_pointer(real / POINTER)):
        return
    manifest = _manifest(real)
    if manifest is None:
        others = [name for name in names if name not in (MANIFEST, UNFINISHED)]
        raise UserError(
            f"Cannot write to {out}: it holds {(others or names)[0]} and is no result of manyeyes; "
            f"{ELSEWHERE}"
        )
    extra = next(unlisted(real, manifest), None)
    if extra is not None:
        raise UserError(
            f"Cannot write to {out}: it holds {extra}, which is no part of the {manifest.kind} "
            f"there; move it away, or {ELSEWHERE}"
        )
    if not manifest.fingerprint and manifest.digest != digest:
        raise UserError(
            f"{out} exists already: it holds a {manifest.kind} that no recipe can make again; "
            f"remove it or {ELSEWHERE}"
        )


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except UserError:
        return None


def _is_pointer(path: Path) -> bool:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"format", "store", "dir_id"} <= found.keys()


def _is_replaceable(file: Path, is_ours: Callable[[str], bool] | None) -> bool:
    try:
        text = read_plain_text(file)
    except (OSError, ValueError):
        return False
    return not text or (is_ours is not None and is_ours(text))


def _lexists(path: Path) -> bool:
    return os.path.lexists(path)


def _restore(real: Path, prefix: str) -> None:
    """Bring back what a killed process had moved away and not replaced."""
    for folder in stale(real.parent, prefix):
        for old in folder.glob("old-*"):
            if not _lexists(real):
                old.rename(real)
