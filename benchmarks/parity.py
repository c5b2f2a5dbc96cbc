"""No speed is counted before both sides compute the same thing.

The same samples and weights go through the product's engine and through the baseline: each sample's
mean loss per learned token, the batch's loss, and the gradient of every trained parameter must
agree. A baseline that trains something else could be as slow or as fast as one likes.

Both get the product's pictures: two ways of resizing differ by a level of 255 here and there, which
the data path's rows bound, and untrained towers make more of that than rounding makes of a sum.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import ours
from benchmarks.baseline.model import PaddedModel
from benchmarks.baseline.trainer import Samples, collate
from manyeyes.errors import ManyeyesError
from manyeyes.model.processor import Processor
from manyeyes.training.engine import precision
from manyeyes.training.freeze import apply_trainable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from benchmarks.baseline.method import Method
    from benchmarks.workload import Workload
    from manyeyes.config.recipe import TrainSection
    from manyeyes.model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Bounds:
    """How far two computations of the same may be apart."""

    loss: float
    """Relative difference."""
    cosine: float
    """Between the gradients."""


FLOAT32 = Bounds(loss=1e-5, cosine=0.999999)
BFLOAT16 = Bounds(loss=1e-2, cosine=0.999)


@dataclass(frozen=True)
class Parity:
    """How far they are apart."""

    loss: float
    """Largest relative difference of a sample's, or the batch's, loss per learned token."""
    cosine: float
    norm: float
    """Relative difference of the gradients' norms."""


def measure(
    model: VisionLanguageModel,
    workload: Workload,
    section: TrainSection,
    method: Method,
    indices: Sequence[int],
) -> Parity:
    """Compare the engine with the baseline on some samples; the model is left as it was."""
    mine, theirs = copy.deepcopy(model), copy.deepcopy(model)
    apply_trainable(theirs, section.train)
    padded = PaddedModel(theirs, method).train()
    apart = 0.0
    for group in [*([index] for index in indices), list(indices)]:
        loss, gradients = ours.loss_and_gradients(mine, workload, section, group)
        other, other_gradients = _baseline(padded, workload, section, group)
        apart = max(apart, abs(loss - other) / max(abs(other), 1e-12))
    cosine, norm = _compare(gradients, other_gradients)
    return Parity(apart, cosine, norm)


def require(name: str, parity: Parity, bounds: Bounds) -> None:
    """Refuse a comparison of unequal computations.

    Raises:
        ManyeyesError: loss or gradient differ by more than the bounds.
    """
    same_loss = parity.loss <= bounds.loss
    if same_loss and parity.cosine >= bounds.cosine and parity.norm <= 1.0 - bounds.cosine + 0.01:
        return
    raise ManyeyesError(
        f"{name}: the two sides do not compute the same training (loss apart by {parity.loss:.1e}, "
        f"gradient cosine {parity.cosine:.6f}, norm apart by {parity.norm:.1e}), so no speed is "
        "counted; find out which of them is wrong."
    )


def _baseline(
    padded: PaddedModel, workload: Workload, section: TrainSection, indices: Sequence[int]
) -> tuple[float, dict[str, Tensor]]:
    samples = Samples(workload, blank_pictures=padded.method.blank_pictures)
    canvas = Processor(canvas_size=workload.canvas_size).canvas
    samples.convert = lambda picture: canvas(np.array(picture)).float() / 255.0
    device = next(padded.parameters()).device
    batch = {
        key: None if value is None else value.to(device)
        for key, value in collate([samples[index] for index in indices]).items()
    }
    with precision(section, device):
        loss: Tensor = padded(**batch)["loss"]
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
    gradients = {
        name: parameter.grad.detach().clone()
        for name, parameter in padded.model.named_parameters()
        if parameter.grad is not None
    }
    padded.zero_grad(set_to_none=True)
    return float(loss.detach()), gradients


def _compare(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return cosine and relative difference of norms; a missing gradient counts as zeros."""
    product = squares = other_squares = 0.0
    for name in {**first, **second}:
        a, b = first.get(name), second.get(name)
        if a is not None:
            squares += float(a.double().pow(2).sum())
        if b is not None:
            other_squares += float(b.double().pow(2).sum())
        if a is not None and b is not None:
            product += float((a.double() * b.double()).sum())
    norms = squares**0.5, other_squares**0.5
    if not all(norms):
        return (1.0, 0.0) if norms[0] == norms[1] else (0.0, 1.0)
    return product / (norms[0] * norms[1]), abs(norms[0] - norms[1]) / norms[1]


def choose(workload: Workload, num: int) -> list[int]:
    """Return samples of either modality, if there are, and of different lengths."""
    encoded = workload.prepared.encoded
    kinds = [np.flatnonzero((encoded.num_images > 0) == has).tolist() for has in (True, False)]
    spread = [kind[:: max(1, len(kind) // num)][:num] for kind in kinds if kind]
    return [index for turn in zip(*spread, strict=False) for index in turn][:num]
