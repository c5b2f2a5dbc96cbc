"""In what ways the LLaVA-style trainer works, each of which can be switched to the better one.

``AUTHORS`` is what LLaVA-1.5 and the systems derived from it ship; ``TUNED`` is what a careful user
makes of it by settings alone. ``LADDER`` switches one thing after another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Method:
    """A way to train."""

    recompute: bool
    """The activations of the language model and of training towers are computed twice."""
    blank_pictures: bool
    """A row without a picture sends a black one through every tower."""
    full_head: bool
    """Logits of every position, padding included, in float32."""
    grouped: bool
    """Batches of one modality and of like true lengths; False is the authors' sampler."""
    fused_optimizer: bool
    """AdamW as one kernel."""


AUTHORS = Method(
    recompute=True, blank_pictures=True, full_head=True, grouped=False, fused_optimizer=False
)
TUNED = replace(AUTHORS, recompute=False, grouped=True, fused_optimizer=True)


def ladder() -> tuple[tuple[str, Method], ...]:
    """Return the rungs from the authors' method to the best this trainer can do, cumulative."""
    rungs = [("LLaVA-style trainer as shipped", AUTHORS)]
    for text, change in (
        ("+ no recomputation", {"recompute": False}),
        ("+ only real pictures", {"blank_pictures": False}),
        ("+ head on learned positions", {"full_head": False}),
        ("+ grouped by true length", {"grouped": True}),
        ("+ fused AdamW", {"fused_optimizer": True}),
    ):
        rungs.append((text, replace(rungs[-1][1], **change)))
    return tuple(rungs)
