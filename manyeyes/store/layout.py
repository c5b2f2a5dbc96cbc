"""DVC 3's layout: which key an object has, and how a directory is written down."""

from __future__ import annotations

import json
import os

from pydantic import BaseModel, ConfigDict

DIRECTORY_SUFFIX = ".dir"
INDEX = "index"
"""First part of the keys that map fingerprints, content digests and names to directories."""
REMOTE = "remote.json"
"""In the folder of a checkout that left files behind: where they are (``store.ranges``)."""


class Member(BaseModel):
    """One file of a stored directory, as DVC writes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    md5: str
    relpath: str


def object_key(name: str) -> str:
    """Return where DVC keeps the object called ``name`` (an md5, or ``<md5>.dir``)."""
    return f"files/md5/{name[:2]}/{name[2:]}"


def index_key(fingerprint: str) -> str:
    """Return where the index says what a fingerprint led to."""
    return f"{INDEX}/{fingerprint}.json"


def digest_key(digest: str) -> str:
    """Return where the index says which directory has a content digest."""
    return f"{INDEX}/digest/{digest}.json"


def name_key(name: str) -> str:
    """Return where the index says which dataset has a name."""
    return f"{INDEX}/name/{name}.json"


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
