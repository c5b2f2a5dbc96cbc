"""Whom a destination belongs to: a result is written only where nothing of a person's is lost.

A folder is free when it is absent, empty, or holds a finished artifact of ours and nothing else. It
never is the folder somebody stands in, the state directory, the store, a stage's input, or a folder
around one of these. A symbolic link is followed, never replaced. Everything else is one sentence.

A result is made in a folder beside its place (``beside``) and put there by renaming (``put``), so
that a kill leaves the old one or the new one. That folder begins with a marker; one without it is
somebody else's, whatever it is called, and is left alone. The kernel holds its lock while the
process lives, so that what a killed process left is known, and removed by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from manyeyes.artifact import (
    MANIFEST,
    POINTER,
    UNFINISHED,
    Manifest,
    is_finished,
    read_manifest,
    unlisted,
)
from manyeyes.errors import UserError
from manyeyes.home import home
from manyeyes.plain_files import read_json, read_plain_text

SCRATCH = ("inputs", "kfp", "models")
"""Folders of the state directory in which all results are copies."""
STATE = ("cache", "features", "index", "locks", "mlflow.db", "packages", "store", "tokens", "work")
"""What else lies there."""
ELSEWHERE = "give another folder with --out."
MARK = "manyeyes makes or made this folder: it is unfinished, and removed when it is in the way.\n"
ATTEMPTS = 100
_CHAIN_BROKEN = (errno.ENOENT, errno.ENOTDIR)
Key = tuple[int, int] | str


def claim_folder(
    out: Path, *, inputs: Iterable[Path] = (), digest: str = "", replace: bool = True
) -> Path:
    """Refuse a folder that a result may not be written to; return the real one behind links.

    Args:
        out: where the result shall lie, as the user named it.
        inputs: what it is made from.
        digest: content digest of the result, where it is known: equal content may be written again.
        replace: a finished result of ours may be replaced.

    Raises:
        UserError: it belongs to somebody, or cannot be written.
    """
    real = _real(out)
    _refuse_place(out, real, inputs)
    if not _is_scratch(real):
        _refuse_content(out, real, digest, replace=replace)
    _refuse_unwritable(out, real)
    return real


def claim_file(
    out: Path,
    *,
    inputs: Iterable[Path] = (),
    is_ours: Callable[[str], bool] | None = None,
    option: str = "--out",
) -> Path:
    """Refuse a file that a result may not be written to; return the real one behind links.

    Args:
        out: the file to write, as the user named it.
        inputs: what it is made from.
        is_ours: says of a file's text whether it is an earlier result, which may be replaced.
        option: of the command line, which names another file.

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
    _refuse_unwritable(out, real.parent)
    return real


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """Give an empty folder beside ``out``, of this process alone, that is removed at the end.

    Args:
        out: where the result shall lie; ``put`` moves the folder there.
    """
    folder, lock = _own_folder(_real(out))
    try:
        work = folder / "new"
        work.mkdir()
        yield work
    finally:
        _clear(folder)
        (folder / UNFINISHED).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
        os.close(lock)


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
                raise _unmovable(out, error) from None
    raise UserError(f"{out} is written by other processes all the time; {ELSEWHERE}")


def free_sibling(out: Path, ending: str) -> Path:
    """Return a path beside ``out`` at which nothing lies but what ``mark`` says is ours.

    What is ours there is removed: ``NAME.refused``, or ``NAME.refused-2`` where that is not ours.
    """
    real = _real(out)
    for number in range(1, ATTEMPTS):
        place = real.with_name(f"{real.name}{ending}" + (f"-{number}" if number > 1 else ""))
        if not _lexists(place):
            return place
        if is_marked(place):
            shutil.rmtree(place)
            return place
    raise UserError(f"There is no room beside {out} for {real.name}{ending}: remove some of them.")


def mark(folder: Path) -> None:
    """Write the marker into a folder that is ours with the files it has now, and no others."""
    names = sorted(_names(folder) - {UNFINISHED})
    (folder / UNFINISHED).write_text(MARK + "".join(f"{name}\n" for name in names), "utf-8")


def begin(folder: Path) -> None:
    """Make a folder in which a result is written in place, with the marker first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNFINISHED).write_text(MARK, "utf-8")


def finish(folder: Path) -> None:
    """Take the marker out of a folder whose result is whole."""
    (folder / UNFINISHED).unlink(missing_ok=True)


def is_marked(folder: Path) -> bool:
    """Say whether a folder is ours by its marker, with no files but those it may have."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        head, *names = read_plain_text(folder / UNFINISHED).splitlines(keepends=True)
    except (OSError, ValueError):
        return False
    listed = {name.rstrip("\n") for name in names}
    return head == MARK and (not listed or _names(folder) - {UNFINISHED} <= listed)


def _names(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _real(path: Path) -> Path:
    """Return the absolute path behind all links; what does not exist yet has one too."""
    try:
        real = Path(os.path.realpath(path))
        real.lstat()
    except ValueError:
        raise UserError(f"{str(path)!r} cannot be a path: {ELSEWHERE}") from None
    except OSError as error:
        if error.errno not in _CHAIN_BROKEN:
            raise _unusable(path, error) from None
    if real.is_symlink():
        raise UserError(f"Cannot write to {path}: its symbolic link leads in a circle; {ELSEWHERE}")
    return real


def _unusable(path: Path, error: OSError) -> UserError:
    name = str(path)
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    return UserError(f"Cannot write to {shown} ({error.strerror}); {ELSEWHERE}")


def _unmovable(out: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot put a folder in the place of {out} ({error.strerror}): name one within it, or "
        f"{ELSEWHERE}"
    )


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
    if key in _chain(Path.cwd()):
        raise UserError(
            f"Cannot write to {out}: it is the folder you are in, or one around it; {ELSEWHERE}"
        )
    for place in _state_places():
        if key in _chain(place) or _key(place) in around:
            raise UserError(
                f"Cannot write to {out}: manyeyes keeps its state there ({place}); {ELSEWHERE}"
            )
    if key in _chain(_real(home())):
        raise UserError(
            f"Cannot write to {out}: manyeyes keeps its state there ({home()}); {ELSEWHERE}"
        )
    for given in inputs:
        place = _real(given)
        if key in _chain(place) or _key(place) in around:
            raise UserError(
                f"Cannot write to {out}: {given}, which is read, would be lost; {ELSEWHERE}"
            )


def _state_places() -> list[Path]:
    """Return what must never be written to, nor within: the parts of the state, and a store."""
    from manyeyes.home import CACHE, STORE

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
        raise _unusable(out, error) from None
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


def _refuse_unwritable(out: Path, real: Path) -> None:
    parent = next(path for path in [real, *real.parents] if _lexists(path))
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(
            f"Cannot write to {out}: {parent} is not writable; choose another folder with --out."
        )


def _lexists(path: Path) -> bool:
    return os.path.lexists(path)


def _own_folder(real: Path) -> tuple[Path, int]:
    """Make or take a folder beside ``real`` and lock it; what a killed process left is cleared."""
    name = real.name
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, ATTEMPTS):
            more = f"-{number}" if number > 1 else ""
            folder = real.with_name(f".{name}.unfinished{more}")
            lock = _take(folder)
            if lock is not None:
                _restore(folder, real)
                _clear(folder)
                return folder, lock
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, *_CHAIN_BROKEN, errno.EEXIST):
            raise _unusable(real, error) from None
        raise
    raise UserError(f"There is no room beside {real} for what is unfinished: remove some of it.")


def _take(folder: Path) -> int | None:
    """Lock a folder of ours, made if need be; None if it is somebody's or in use."""
    with suppress(FileExistsError):
        folder.mkdir()
    if folder.is_symlink() or not folder.is_dir():
        return None
    path = folder / UNFINISHED
    names = os.listdir(folder)
    begun = names == [UNFINISHED] and not os.lstat(path).st_size
    if names and not begun and not is_marked(folder):
        return None
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(lock).st_mode) or not _locked(lock):
            os.close(lock)
            return None
        if not os.path.samestat(os.fstat(lock), path.stat()):
            raise FileNotFoundError(errno.ENOENT, "it was removed", str(path))
    except FileNotFoundError:  # who had it is done with it
        os.close(lock)
        return None
    os.ftruncate(lock, 0)
    os.write(lock, MARK.encode())
    return lock


def _locked(descriptor: int) -> bool:
    """Lock a file; where the file system has no locks, its name has to do."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _restore(folder: Path, real: Path) -> None:
    """Bring back what a killed process had moved away and not replaced."""
    old = sorted(folder.glob("old-*"))
    if old and not _lexists(real):
        old[-1].rename(real)


def _clear(folder: Path) -> None:
    """Remove everything but the marker."""
    for path in folder.iterdir():
        if path.name == UNFINISHED:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
