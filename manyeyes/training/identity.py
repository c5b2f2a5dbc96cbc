"""What a run is: a digest of all that decides its final weights, and its random numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from manyeyes.training.freeze import digest_tensors

if TYPE_CHECKING:
    from manyeyes.config.recipe import TrainSection
    from manyeyes.data.loading.batches import Prepared
    from manyeyes.model.vlm import VisionLanguageModel

HOW_NOT_WHAT: dict[str, bool | set[str]] = {
    "checkpoint_every": True,
    "batch": {"accumulation"},
    "feature_cache": True,
    "recompute": True,
    "workers": True,
    "max_quarantined": True,
}
"""Keys of a section that say how a result is reached, and do not change it."""


def identity(
    model: VisionLanguageModel, prepared: Prepared, section: TrainSection, seed: int
) -> str:
    """Return the digest; a state belongs to one of these, whatever number of processes made it."""
    digest = hashlib.sha256()
    digest.update(section.model_dump_json(exclude=HOW_NOT_WHAT).encode())
    digest.update(f"\0{seed}\0".encode())
    digest.update(digest_tensors(model.named_parameters()).encode())
    digest.update(prepared.encoded.digest.encode())
    for sample_id in prepared.samples.ids():
        digest.update(f"\0{sample_id}".encode())
    digest.update(prepared.samples.num_images().tobytes())
    for sha256 in prepared.samples.picture_names():
        digest.update(f"\0{sha256}".encode())
    return digest.hexdigest()


def mix(*numbers: int) -> int:
    """Return a seed for a run's step, or a place in it, unlike that of any other."""
    text = "/".join(map(str, numbers))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
