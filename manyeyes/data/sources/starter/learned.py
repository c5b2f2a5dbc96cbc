"""What the shipped zoo has learned from, so that no seed's held-out splits hold it again.

The zoo's parts were trained once, on the training split of one seed (``tools.zoo.build``), and
every recipe starts from them. So what they saw must be training data for every other seed, too.
Scans and table rows are dealt to the splits in one way for all seeds (``sources``). Documents,
scenes and conversations are drawn at random, and small ones come up again under any seed: their
digests stand in ``learned.npy``, and the held-out splits draw again.

A zoo that is made again from other data needs the file anew: :func:`write` what
:func:`learned_entities` finds in its data, and note the file's sha256 here.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from manyeyes.data.dataset.sample import Turn

FILE = Path(__file__).with_name("learned.npy")
SHA256 = "c8b41d87ccefea173b04299d0430bef21b6bb8c07e07a076dba30811ddfac57b"
"""Of the file: whoever keys results by this module's text keys them by the file as well."""
DIGEST_BYTES = 5
"""One draw in eighty million is drawn again for nothing."""


def was_learned(entity: str) -> bool:
    """Say whether the zoo's training split held this document, scene or conversation."""
    return _digest(entity) in _learned()


def conversation_entity(turns: Sequence[Turn]) -> str:
    """Return the name of a conversation: all that is said."""
    return "chat:" + "/".join(turn.text for turn in turns)


def write(entities: Iterable[str], path: Path = FILE) -> None:
    """Write the digests of entities, sorted."""
    np.save(path, np.array(sorted({_digest(entity) for entity in entities}), np.uint64))


def learned_entities(dataset: Path) -> set[str]:
    """Return what the training split of a starter dataset could teach by being seen again."""
    from manyeyes.data.dataset.dataset import Dataset

    samples = Dataset.open(dataset).samples("train")
    drawn = {entity for sample in samples for entity in sample.entities if _is_drawn(entity)}
    talks = {conversation_entity(sample.turns) for sample in samples if sample.task == "chat"}
    return drawn | talks


def _is_drawn(entity: str) -> bool:
    return entity.startswith(("lines:", "receipt:", "form:", "scene:"))


def _digest(entity: str) -> int:
    return int.from_bytes(hashlib.sha256(entity.encode()).digest()[:DIGEST_BYTES], "big")


@cache
def _learned() -> frozenset[int]:
    data = FILE.read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHA256, f"{FILE} is not the file of this version"
    numbers: NDArray[np.uint64] = np.load(FILE, allow_pickle=False)
    return frozenset(numbers.tolist())
