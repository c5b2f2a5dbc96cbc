r"""The words of a dataset: a sample, its turns, its pictures, and where each thing lies on disk.

Design decisions:

- Plain frozen dataclasses: ten thousand of them are made in a tenth of a second, and nothing that
  trains or evaluates can change what the data says.
- Conversations are LLaVA's: ``[{"from": "human", "value": "<image>\nWhich ...?"}, ...]``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

IMAGE_PLACEHOLDER = "<image>"
"""Stands in a human turn where a picture's visual tokens go, once per picture."""

MAX_FILE_BYTES = 256 * 1024 * 1024
"""A larger file is no picture to learn from."""
SPLITS = ("train", "val", "test")
SHARDS_FOLDER = "shards"

SAMPLE_COLUMNS = (
    "id", "split", "task", "subset", "conversations", "images", "answers", "source", "licence",
    "entities",
)  # fmt: skip


@dataclass(frozen=True)
class ImageRef:
    """Where one picture's bytes lie, and what they must be."""

    id: str
    shard: str
    """File name inside ``shards/``."""
    offset: int
    """First byte of the picture in the shard."""
    size: int
    """Length in bytes."""
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class Turn:
    """One utterance of a conversation."""

    speaker: Literal["human", "gpt"]
    text: str


@dataclass(frozen=True)
class Sample:
    """One conversation, with its pictures and, for tasks with a metric, accepted answers."""

    id: str
    split: str
    task: str
    subset: str
    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...]
    """In the order of the ``<image>`` placeholders."""
    answers: tuple[str, ...]
    """Accepted answers of the last question; empty where nothing is scored."""
    source: str
    licence: str
    entities: tuple[str, ...]
    """What the sample is made of; no entity occurs in two splits."""


def conversations_to_json(turns: tuple[Turn, ...]) -> str:
    """Write turns in LLaVA's form."""
    return json.dumps(
        [{"from": turn.speaker, "value": turn.text} for turn in turns], ensure_ascii=False
    )
