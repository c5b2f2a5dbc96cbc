"""DVC 3's layout: which key an object has, and how a directory is written down."""

from __future__ import annotations

import json
import os
import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from manyeyes.artifact.manifest import Md5
from manyeyes.errors import UserError

DIRECTORY_SUFFIX = ".dir"
INDEX = "index"
"""First part of the keys that map fingerprints, content digests and names to directories."""
DirectoryId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}\.dir$")]
"""DVC's name of a directory: ``<md5>.dir``."""
_OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Member(BaseModel):
    """One file of a stored directory, as DVC writes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    md5: Md5
    relpath: str
    """Not to be joined to a path before ``is_relative_name`` agreed."""


def object_key(name: str) -> str:
    """Return where DVC keeps the object called ``name`` (an md5, or ``<md5>.dir``).

    Raises:
        UserError: it is neither, and would lead anywhere.
    """
    _check(_OBJECT, name, "the name of an object")
    return f"files/md5/{name[:2]}/{name[2:]}"


def index_key(fingerprint: str) -> str:
    """Return where the index says what a fingerprint led to; UserError if it is no sha256."""
    _check(_SHA256, fingerprint, "a fingerprint")
    return f"{INDEX}/{fingerprint}.json"


def digest_key(digest: str) -> str:
    """Return where the index says which directory has a digest; UserError if it is no sha256."""
    _check(_SHA256, digest, "a content digest")
    return f"{INDEX}/digest/{digest}.json"


def name_key(name: str) -> str:
    """Return where the index says which dataset has a name; UserError if no dataset can have it."""
    _check(_NAME, name, "the name of a dataset")
    return f"{INDEX}/name/{name}.json"


def _check(pattern: re.Pattern[str], text: str, what: str) -> None:
    """Refuse a text that came from a file and is not what becomes a part of a path."""
    if pattern.fullmatch(text) is None:
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        raise UserError(f"{shown!r} is not {what}: what it comes from was changed or damaged.")


def md5_of(key: str) -> str:
    """Return the md5 an object's key promises."""
    folder, name = key.split("/")[-2:]
    return (folder + name).removesuffix(DIRECTORY_SUFFIX)


def tree_bytes(members: list[Member]) -> bytes:
    """Write a directory's list exactly as DVC 3 does: its md5 is the directory's name."""
    ordered = sorted((member.model_dump() for member in members), key=lambda row: row["relpath"])
    return json.dumps(ordered, sort_keys=True).encode()


def dvc_owns_outputs() -> bool:
    """Say whether DVC runs this process as a stage of ``dvc.yaml``, and so tracks what it writes.

    DVC refuses a repository in which two files track one path: no pointer may be exported then.
    """
    return "DVC_STAGE" in os.environ
