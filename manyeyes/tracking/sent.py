"""What a store has of each record: ``sent.json`` beside it, a memory that may be lost."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from manyeyes.artifact.manifest import atomic_write_text, hash_file
from manyeyes.tracking.pipeline import ARTIFACTS
from manyeyes.tracking.records import RunRecord, Stored

if TYPE_CHECKING:
    from pathlib import Path

    from manyeyes.tracking.store import Store

SENT_FILE = "sent.json"


class Sent(Stored):
    """What one store has of one record."""

    experiment: str = ""
    run: str = ""
    description: str = ""
    """Digest of the tags, params, inputs and scores that were sent."""
    artifacts: dict[str, str] = Field(default_factory=dict)
    """sha256 of each file that was sent, by name."""
    steps: dict[str, int] = Field(default_factory=dict)
    """Last step sent of each curve file."""
    closing: str = ""
    """Status, attempt and end that were sent last."""


class SentBook(Stored):
    """``sent.json``: what each store has, by the store's key."""

    stores: dict[str, Sent] = Field(default_factory=dict)


def is_sent(directory: Path, record: RunRecord, store: Store) -> bool:
    """Whether the store has all of a record that has ended; a running one may always have more."""
    sent = read_book(directory).stores.get(store.key)
    return (
        sent is not None
        and store.exists
        and record.status != "RUNNING"
        and sent.closing == closing_of(record)
        and sent.description == description_of(record)
        and sent.artifacts == artifacts_of(directory)
    )


def artifacts_of(directory: Path) -> dict[str, str]:
    """Return the sha256 of each file that MLflow shall keep with the run of a record."""
    if not (directory / ARTIFACTS).is_dir():
        return {}
    found = sorted(path for path in (directory / ARTIFACTS).iterdir() if path.is_file())
    return {path.name: hash_file(path).sha256 for path in found}


def closing_of(record: RunRecord) -> str:
    """Return how a record ended, as it is remembered."""
    return f"{record.status} {record.attempts} {record.ended}"


def description_of(record: RunRecord) -> str:
    """Return a digest of all that a record says besides its curves and its end."""
    parts = record.model_dump(
        mode="json", include={"tags", "params", "datasets", "scores", "attempts"}
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_book(directory: Path) -> SentBook:
    """Return what is remembered of a record; nothing when that was lost."""
    try:
        return SentBook.model_validate_json((directory / SENT_FILE).read_bytes())
    except (OSError, ValidationError):
        return SentBook()


def write_sent(directory: Path, book: SentBook, store: Store, sent: Sent) -> None:
    """Remember what one store has of a record."""
    stores = {**book.stores, store.key: sent}
    atomic_write_text(directory / SENT_FILE, SentBook(stores=stores).model_dump_json(indent=1))
