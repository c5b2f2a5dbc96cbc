"""Tokens on disk: a dataset's texts are tokenised once for each tokenizer and template.

Design decisions:

- A table's name is a digest of all that decides what is in it: the index and which of its rows, the
  tokenizer with its special ids, the template's words and the code that puts them together. So
  nothing is ever invalid, and stages, experts and sweeps share what they can.
- Its arrays are mapped, not read: the processes of a machine share one copy, in the kernel's cache.
- One process makes a table while the others wait. It is written under another name and renamed, not
  synced: a checksum finds what a crash tore, and a damaged table is no table.
- ``MANYEYES_TOKENS_GIB`` limits the folder, and so does half of the disk's free space. Tables that
  nobody has open, or opened within an hour, are removed for a new one, longest unused first. Where
  there is no room, or the home folder cannot be written, everything is tokenised in memory, as it
  is for tokenizers that are no fast ones of Hugging Face.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
import uuid
import weakref
from contextlib import ExitStack, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyeyes.artifact.manifest import atomic_write_json
from manyeyes.data.loading.conversation import tokenise
from manyeyes.data.loading.templates import template_named
from manyeyes.data.loading.tokenizer import plain_backend
from manyeyes.data.loading.tokens import DTYPES, Tokens, joined_digest
from manyeyes.errors import UserError
from manyeyes.runtime.disk import USED, longest_unused, size_limit, size_of
from manyeyes.runtime.home import home
from manyeyes.runtime.locks import held

if TYPE_CHECKING:
    from collections.abc import Iterable

    from manyeyes.data.dataset.index import Samples
    from manyeyes.data.loading.tokenizer import Tokenizer

TOKENS = "tokens"
LIMIT = "MANYEYES_TOKENS_GIB"
LIMIT_GIB = 20.0
FORMAT = 1
"""Changes when the files do."""
_HEAD = "head.json"
_LOCKS = "locks"
_HEADER_BYTES = 128


def tokens_folder() -> Path:
    """Return where tables lie; it may not exist yet."""
    return home() / TOKENS


def tokens_of(samples: Samples, tokenizer: Tokenizer, template: str) -> Tokens:
    """Return samples as ids: from disk where that is possible, and made where they are not there.

    Args:
        samples: the samples; those that cannot be read or encoded are marked in the table.
        tokenizer: any Hugging Face tokenizer.
        template: key of ``TEMPLATES``.

    Raises:
        UserError: unknown template, or the index cannot be read.
    """
    name = table_name(samples, tokenizer, template)
    found = None
    # A disk that refuses, a home that cannot be written, a file system without locks.
    with suppress(OSError, UserError):
        if name and len(samples):
            found = _kept(name, samples, tokenizer, template)
    return found or Tokens.joined(tokenise(samples.attempts(), tokenizer, template))


def table_name(samples: Samples, tokenizer: Any, template: str) -> str:  # noqa: ANN401  # transformers' type
    """Return the name of the samples' table; empty if the tokenizer cannot be identified."""
    words = template_named(template)
    backend = plain_backend(tokenizer)
    if backend is None:
        return ""
    code = Path(__file__).with_name("conversation.py").read_bytes()
    facts = {
        "format": FORMAT,
        "index": samples.source.digest,
        "rows": hashlib.sha256(np.ascontiguousarray(samples.rows).data).hexdigest(),
        "template": asdict(words),
        "tokenizer": hashlib.sha256(backend.to_str().encode()).hexdigest(),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id],
        "tokenizers": version("tokenizers"),
        "code": hashlib.sha256(code).hexdigest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _kept(name: str, samples: Samples, tokenizer: Tokenizer, template: str) -> Tokens | None:
    """Return a table of the folder, made if it is not there; None if it cannot be used.

    Raises:
        OSError, UserError: it cannot be kept here.
    """
    folder = tokens_folder()
    table = folder / name
    found = _opened(table)
    if found is not None:
        return found
    with held(folder / _LOCKS / f"{name}.lock"):
        found = _opened(table)  # another process may have made it meanwhile
        if found is None:
            for rest in (table, *folder.glob(f".{name}.*")):
                shutil.rmtree(rest, ignore_errors=True)
            _make(table, tokenise(samples.attempts(), tokenizer, template))
            found = _opened(table)
    return found


def _opened(table: Path) -> Tokens | None:
    """Map a table; None if there is none, or it is damaged."""
    try:
        head = json.loads((table / _HEAD).read_text(encoding="utf-8"))
        arrays = {name: np.load(table / f"{name}.npy", mmap_mode="r") for name in DTYPES}
        if any(arrays[name].dtype != dtype for name, dtype in DTYPES.items()):
            return None
        # Without numpy's class for mapped arrays, which makes each slice of it slow.
        found = Tokens(**{name: np.asarray(array) for name, array in arrays.items()})
        if found.digest != head["digest"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    with suppress(OSError):
        _hold(table, found)
    return found


def _hold(table: Path, tokens: Tokens) -> None:
    """Mark a table as used, now and for as long as there are its tokens."""
    (table / USED).touch()
    file = (table / USED).open("rb")
    weakref.finalize(tokens, file.close)
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _is_held(table: Path) -> bool:
    """Tell whether some process has a table open.

    On one machine the files of a table that is removed stay until they are closed; on a disk that
    machines share they would vanish under whoever has them mapped.
    """
    try:
        with (table / USED).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _make(table: Path, parts: Iterable[Tokens]) -> None:
    """Write a table: whole or not at all.

    Raises:
        OSError: the disk refuses, or there is no room for it.
    """
    temporary = table.with_name(f".{table.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        with _Writer(temporary) as writer:
            for part in parts:
                writer.add(part)
            writer.finish()
        temporary.rename(table)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Writer:
    """Writes the arrays of a table a portion at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes = dict.fromkeys(DTYPES, 0)
        self.hashes = {name: hashlib.sha256() for name in DTYPES}
        everything = folder.parent
        self.room = size_limit(everything, LIMIT, LIMIT_GIB) - size_of(everything)

    def __enter__(self) -> _Writer:
        """Open the files."""
        with ExitStack() as stack:
            self.files = {
                name: stack.enter_context((self.folder / f"{name}.npy").open("wb"))
                for name in DTYPES
            }
            for file in self.files.values():
                file.write(b"\0" * _HEADER_BYTES)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._stack.close()

    def add(self, part: Tokens) -> None:
        """Write some samples behind those that were written before.

        Raises:
            OSError: the disk refuses, or there is no room.
        """
        (self.folder / USED).touch()
        self._take_room(sum(array.nbytes for array in part.arrays()))
        for name, array in zip(DTYPES, part.arrays(), strict=True):
            self.files[name].write(array.data)
            self.hashes[name].update(array.data)
            self.sizes[name] += len(array)

    def finish(self) -> None:
        """Write what tells of the arrays."""
        for name, file in self.files.items():
            file.seek(0)
            file.write(_header(DTYPES[name], self.sizes[name]))
        digests = [one.hexdigest() for one in self.hashes.values()]
        atomic_write_json(self.folder / _HEAD, {"digest": joined_digest(digests)})

    def _take_room(self, needed: int) -> None:
        while self.room < needed:
            oldest = longest_unused(path for path in self._others() if not _is_held(path))
            if oldest is None:
                raise OSError(errno.ENOSPC, "the limit of the tokens' folder")
            size = size_of(oldest)
            shutil.rmtree(oldest)
            self.room += size
        self.room -= needed

    def _others(self) -> list[Path]:
        paths = self.folder.parent.iterdir()
        return [path for path in paths if path.name not in (_LOCKS, self.folder.name)]


def _header(dtype: np.dtype[Any], length: int) -> bytes:
    """Return the header of a .npy file (version 1.0 of numpy's format), always of one size."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    magic = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return magic + text.ljust(_HEADER_BYTES - 11).encode() + b"\n"
