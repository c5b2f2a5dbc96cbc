"""What makes a training run the same run: seeds by place, and a digest of all that decides it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from manyeyes.train.freeze import digest_tensors

if TYPE_CHECKING:
    from manyeyes.data.batches import Prepared
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.recipe import TrainSection


def mix(*numbers: int) -> int:
    """Return a seed for a run's step, or a place in it, unlike that of any other."""
    text = "/".join(map(str, numbers))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def identity_of(
    model: VisionLanguageModel, prepared: Prepared, section: TrainSection, seed: int
) -> str:
    """Return a digest of all that decides the final weights; a state belongs to one of these."""
    digest = hashlib.sha256()
    # How the work is divided is not in it: another number of processes may continue a state.
    part = section.model_dump_json(exclude={"checkpoint_every": True, "batch": {"accumulation"}})
    digest.update(part.encode())
    digest.update(f"\0{seed}\0".encode())
    digest.update(digest_tensors(model.named_parameters()).encode())
    for sample, encoded in zip(prepared.samples, prepared.encoded, strict=True):
        pictures = [ref.sha256 for ref in sample.images]
        digest.update(f"{sample.id}\0{pictures}\0{encoded.input_ids}\0{encoded.labels}".encode())
    return digest.hexdigest()
