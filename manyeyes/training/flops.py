"""How many floating-point operations a step needs, from real lengths; one multiply-add counts two.

Needed operations only: no padding, no recomputation, causal attention at half. Model FLOPs
utilisation (MFU) is this number over what the device could have done in the same time, so work that
is not needed lowers it. Notation: P block parameters, L layers, h width, T positions of a sample,
S learned positions, V vocabulary, E_k one image through encoder k.

- Language model forward of a sample: 2 P T + 2 L h T^2 (the square per sample, never of a sum).
  Of a mixture of experts P counts what one position uses. Less 2 N (T - S): N parameters of the
  last layer are needed at learned positions only (``manyeyes.model.last_layer``).
- Head forward: 2 S V h; the projector: 2 parameters per visual token; a fusion: what one image
  costs it, in front of the language model and inside it.
- Backward costs one forward for gradients of inputs and one for gradients of weights. So a part
  that trains costs 3 forwards, a frozen part behind a trained one 2, any other frozen one 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PEAK_FLOPS: dict[str, float] = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 operations per second of a device, by the start of its name."""


@dataclass(frozen=True)
class ModelCost:
    """What of a model its operations depend on."""

    block_parameters: int
    """P: parameters of the language model's layers that one position uses, without embedding and
    head."""
    layers: int
    width: int
    vocabulary: int
    projector_parameters: int
    num_visual_tokens: int
    encoder_flops: Mapping[str, float]
    """E_k: forward operations of one image through each encoder."""
    fusion_flops: float = 0.0
    """Forward operations of one image in the fusion."""
    learned_only_parameters: int = 0
    """N: parameters of the last layer that are used at learned positions only."""


@dataclass(frozen=True)
class Trained:
    """Which parts get gradients of their weights."""

    encoders: frozenset[str]
    projector: bool
    language_model: bool
    fusion: bool = False


def language_model_flops(cost: ModelCost, length: int) -> float:
    """Return the forward operations of one sample of ``length`` positions, without the head."""
    attention = 2.0 * cost.layers * cost.width * length**2
    return 2.0 * cost.block_parameters * length + attention


def step_flops(
    cost: ModelCost,
    trained: Trained,
    lengths: Sequence[int],
    *,
    num_images: int,
    num_supervised: int,
) -> float:
    """Return the operations a step needs, forward and backward.

    Args:
        cost: the model.
        trained: what of it trains.
        lengths: real positions of every sample of the step, pictures spliced in.
        num_images: pictures of the step.
        num_supervised: learned positions of the step.
    """
    seen = bool(trained.encoders)
    fused = seen or trained.fusion
    before = fused or trained.projector
    language = sum(language_model_flops(cost, length) for length in lengths)
    language -= 2.0 * cost.learned_only_parameters * (sum(lengths) - num_supervised)
    head = 2.0 * num_supervised * cost.vocabulary * cost.width
    projector = 2.0 * cost.projector_parameters * cost.num_visual_tokens * num_images
    total = _passes(trains=trained.language_model, before=before) * (language + head)
    total += _passes(trains=trained.projector, before=fused) * projector
    total += _passes(trains=trained.fusion, before=seen) * cost.fusion_flops * num_images
    for name, forward in cost.encoder_flops.items():
        total += _passes(trains=name in trained.encoders, before=False) * forward * num_images
    return total


def _passes(*, trains: bool, before: bool) -> float:
    """Return how many forwards a part costs; ``before``: something trains before it."""
    if trains:
        return 3.0
    return 2.0 if before else 1.0


def peak_flops(device_name: str) -> float | None:
    """Return the peak of a device, or None where none is known (a CPU)."""
    for start, peak in PEAK_FLOPS.items():
        if device_name.startswith(start):
            return peak
    return None


def utilisation(flops: float, seconds: float, device_name: str) -> float | None:
    """Return the share of the device's peak that was used (0 to 1); None if no peak is known."""
    peak = peak_flops(device_name)
    return None if peak is None or seconds <= 0.0 else flops / seconds / peak
