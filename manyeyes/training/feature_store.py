"""Features of frozen encoders on disk, by content; shared by all runs of a home folder.

Design decisions:

- A *shelf* is a folder for one encoder as it computes: its name is a digest of weights, spec, grid,
  canvas, type, device and library (see ``features``). In it a picture's features have the name of
  the picture's sha256. So nothing is ever invalid, and sweeps and ablations share what they can.
- An entry is written under a name of its own and renamed: writers never meet, and the last of two
  that computed the same wins with the same bytes. It is not synced; a checksum finds what a crash
  tore, and a damaged entry is no entry: it is removed and computed again.
- ``MANYEYES_FEATURES_GIB`` limits the whole folder, and so does half of the disk's free space.
  Shelves that nobody used for an hour are removed for a new one, longest unused first. A shelf in
  use is never thinned: pictures come without replacement, so the oldest entry is the next needed.
  What does not fit is computed. Several writers count for themselves and look again after a
  sixteenth of the limit, so together they may exceed it by that much each.
"""

from __future__ import annotations

import json
import shutil
import uuid
import zlib
from pathlib import Path

import torch

from manyeyes.runtime import disk
from manyeyes.runtime.home import home

FEATURES = "features"
LIMIT = "MANYEYES_FEATURES_GIB"
LIMIT_GIB = 20.0
_TYPES = {str(t): t for t in (torch.float32, torch.bfloat16, torch.float16)}


def features_folder() -> Path:
    """Return where features lie; it may not exist yet."""
    return home() / FEATURES


def size_limit(folder: Path) -> int:
    """Return the bytes that features may take."""
    return disk.size_limit(folder, LIMIT, LIMIT_GIB)


class Shelf:
    """The features of one encoder."""

    def __init__(self, name: str, limit: int | None = None) -> None:
        """Take the shelf ``name``; nothing is made before something is put.

        Args:
            name: digest of what computes.
            limit: bytes for all shelves together; None reads the environment.
        """
        self.folder = features_folder() / name
        self._limit = size_limit(features_folder()) if limit is None else limit
        self._room = -1
        self._full = False

    def has(self, sha256: str) -> bool:
        """Tell whether there is an entry, whole or not."""
        return self._path(sha256).is_file()

    def get(self, sha256: str) -> torch.Tensor | None:
        """Return a picture's features, or None; a damaged entry is removed."""
        path = self._path(sha256)
        try:
            data = bytearray(path.read_bytes())
        except OSError:
            return None
        try:
            return _decode(data)
        except (ValueError, KeyError, TypeError, RuntimeError):
            self.drop(sha256)
            return None

    def drop(self, sha256: str) -> None:
        """Remove a picture's features, if there are any."""
        self._path(sha256).unlink(missing_ok=True)

    def put(self, sha256: str, features: torch.Tensor) -> None:
        """Keep a picture's features, if there is room; a disk that refuses ends the keeping."""
        if self._full:
            return
        data = _encode(features)
        if self._room < len(data):
            self._make_room(len(data))
            if self._full:
                return
        path = self._path(sha256)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            self._full = True
            temporary.unlink(missing_ok=True)
        self._room -= len(data)

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def _make_room(self, needed: int) -> None:
        """Count what is there, remove unused shelves, and take a part of what is free."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / disk.USED).touch()
        except OSError:
            self._full = True
            return
        shelves = [shelf for shelf in self.folder.parent.iterdir() if shelf.is_dir()]
        free = self._limit - sum(map(disk.size_of, shelves))
        while free < needed and (shelf := disk.longest_unused(shelves)):
            free += disk.size_of(shelf)
            shutil.rmtree(shelf, ignore_errors=True)
            shelves.remove(shelf)
        self._full = free < needed
        self._room = max(needed, min(free, self._limit // 16))


def _encode(features: torch.Tensor) -> bytes:
    flat = features.detach().cpu().contiguous()
    body = flat.view(torch.uint8).numpy().tobytes()
    head = {"dtype": str(flat.dtype), "shape": list(flat.shape), "crc": zlib.crc32(body)}
    return json.dumps(head).encode() + b"\n" + body


def _decode(data: bytearray) -> torch.Tensor:
    """Read an entry.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: it is not one, or damaged.
    """
    end = data.index(b"\n")
    head = json.loads(data[:end])
    body = memoryview(data)[end + 1 :]
    if zlib.crc32(body) != head["crc"]:
        raise ValueError("the checksum is another")
    # A copy: the body begins where no type of more than a byte may.
    flat = torch.frombuffer(bytearray(body), dtype=_TYPES[head["dtype"]])
    return flat.reshape(head["shape"])
