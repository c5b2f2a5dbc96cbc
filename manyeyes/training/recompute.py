"""Recomputation: a block's activations are made again in the backward pass and not kept.

Chosen per module by the recipe, because it costs a forward of what it covers and pays nowhere but
in memory. The unit is a block of the outermost list of blocks (a transformer's layers, a
convolutional network's stages). Random numbers are those of the first time, so that gradients are
the same. The last layer of the language model keeps its own: the backward pass begins with it, so
that forgetting would save nothing, and it is computed at few positions (``last_layer``). The
blocks' own switch in transformers asks whether they are in training mode, which frozen ones that
pass gradients on are not; so it is done here, the same for all.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from manyeyes.model.fusion import is_trainable
from manyeyes.model.transformer import decoder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from manyeyes.model.vlm import VisionLanguageModel


@contextmanager
def recomputing(model: VisionLanguageModel, what: str) -> Iterator[None]:
    """Recompute in a block of code.

    Args:
        model: whose blocks are changed until the end.
        what: ``none``, ``llm``, ``encoders`` or ``all``. Encoders that do not train keep nothing
            anyway and are left alone.
    """
    blocks: list[nn.Module] = []
    if what in ("llm", "all"):
        blocks += blocks_of(decoder_of(model.llm))[:-1]
    if what in ("encoders", "all"):
        towers = [expert.tower for expert in model.experts.values() if is_trainable(expert)]
        blocks += [block for tower in towers for block in blocks_of(tower)]
    for block in blocks:
        # On the instance, in front of the class's own; what was there goes back in the end.
        block.forward = _recomputed(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def blocks_of(root: nn.Module) -> list[nn.Module]:
    """Return the members of the outermost lists of modules below ``root``."""
    if isinstance(root, nn.ModuleList):
        return list(root)
    return [block for child in root.children() for block in blocks_of(child)]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:  # noqa: ANN401  (whatever the block takes)
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    return run
