"""What the tests of the content store share: a small artifact, and what lies in a folder."""

from __future__ import annotations

import hashlib

from manyeyes.artifact.manifest import Header, write_manifest

FINGERPRINT = "f" * 64


def md5(data):
    """Return the name an object with these bytes has."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def write_artifact(folder, files, **details):
    """Write a finished checkpoint with these files; return its manifest."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    header = Header(
        kind="checkpoint", stage="sft", name="sft", recipe_slice="s", fingerprint=FINGERPRINT,
        parents={}, code="c", revision="r", libraries={}, seed=1, details=details,
    )  # fmt: skip
    return write_manifest(folder, header)


def put(store, folder, files, **details):
    """Write a finished checkpoint and store it under ``FINGERPRINT``; return its directory's id."""
    manifest = write_artifact(folder, files, **details)
    dir_id = store.put(folder, manifest)
    store.remember(FINGERPRINT, dir_id, manifest.digest)
    return dir_id


def contents(folder):
    """Return every file below a folder, by its path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
