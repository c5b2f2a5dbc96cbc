"""The forward pass of a training step on the meta device, by numbers in place of values.

``VisionLanguageModel.forward`` looks at values (where pictures stand, what is learned), which the
meta device has not. This is the same path, part for part, with those places given by their number.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyeyes.model.alignment import lesson_of, listen
from manyeyes.model.last_layer import last_layer_at
from manyeyes.model.loss import LOGIT_BYTES, loss_of
from manyeyes.model.transformer import decoder_of, head_of
from manyeyes.plan.activations import Course, follow, standing_in
from manyeyes.training.recompute import recomputing

if TYPE_CHECKING:
    from manyeyes.model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class SampleShape:
    """The largest sample of a stage."""

    length: int
    """Positions, pictures spliced in."""
    images: int
    canvas: int
    """Side of a picture in pixels."""


def follow_step(model: VisionLanguageModel, shape: SampleShape, *, recompute: str) -> Course:
    """Return what forward and backward of micro-batches hold.

    Args:
        model: on the meta device; what trains is marked.
        shape: of each sample.
        recompute: as in a recipe: ``none``, ``llm``, ``encoders``, ``all``.
    """

    def run(samples: int, positions: int) -> Tensor:
        return _forward(model, shape, samples, positions)

    how = nullcontext() if recompute == "none" else recomputing(model, recompute)
    with how, standing_in(model.llm):
        return follow(model, run)


def most_positions(vocabulary: int) -> int:
    """Return of how many learned positions logits exist at once, at most; see ``model.loss``."""
    return max(1, LOGIT_BYTES // (4 * vocabulary))


def _forward(
    model: VisionLanguageModel, shape: SampleShape, samples: int, positions: int
) -> Tensor:
    num_images = samples * shape.images
    size = (num_images, 3, shape.canvas, shape.canvas)
    pictures = torch.zeros(size, dtype=torch.uint8, device="meta")
    maps = model.see(pictures)
    visual = model.project(maps)
    assert visual is not None
    rehearsed = model.fusion.rehearse(maps)
    embeddings = _splice(model, visual, samples, shape.length)
    decoder, learned = decoder_of(model.llm), _indices(positions)
    lesson = lesson_of(model.alignment, model.fusion, pictures, None)
    narrowed = last_layer_at(decoder, learned if lesson is None else None)
    with narrowed, listen(lesson, decoder, embeddings, _indices(num_images)) as heard:
        hidden = decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    chosen = hidden.flatten(0, 1).index_select(0, learned)
    loss = loss_of(head_of(model.llm), chosen, learned)
    if lesson is not None and heard is not None:
        loss = loss + lesson.layer.weight * lesson.loss(heard, hidden)
    for tensor in rehearsed:  # into the graph; in the model they are on the way to the loss
        loss = loss + 0.0 * tensor.sum()
    return loss


def _splice(model: VisionLanguageModel, visual: Tensor, samples: int, length: int) -> Tensor:
    """Return embeddings (B, T, D) of which the pictures' tokens (I, V, D) are a part."""
    seen = visual.flatten(0, 1)
    words = max(1, samples * length - seen.shape[0])
    text = model.llm.get_input_embeddings()(_indices(words))
    flat = text.new_zeros(words + seen.shape[0], text.shape[-1])
    flat = flat.index_copy(0, _indices(words), text)
    flat = flat.index_copy(0, _indices(seen.shape[0]), seen.to(flat.dtype))
    embeddings: Tensor = flat[: samples * length].view(samples, -1, text.shape[-1])
    return embeddings


def _indices(number: int) -> Tensor:
    return torch.zeros(number, dtype=torch.int64, device="meta")
