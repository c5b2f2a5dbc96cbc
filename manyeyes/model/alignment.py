"""EVE's patch aligning layer: a teacher for a model without eyes (arXiv:2406.11832, section 3.2).

While training, hidden states of the language model at a picture's cells are brought together, cell
by cell, and compared with what a frozen CLIP says about the same spot:

    t_j    = Linear_j(LN_j(h_j))                 of every stride-th hidden state, last first
    found  = softmax(t_0 . t_j / sqrt(C)) t_j    over j > 0, per cell
    align  = Linear(h_0) + Linear(found)
    loss   = 1 - mean cosine(align, teacher)     per picture, then over pictures

The numbers, and the square root of the whole width, are those of the authors' code, as are the
names of the parameters. Where patches are finer than the teacher's, hidden states are averaged.

Unlike there: hooks keep the needed hidden states at pictures only (the authors ask for all 33 at
all positions); a sample may show several pictures; and the teacher is no part of the module tree,
so that nothing trains, shares out or saves it.

Shapes: T cells of the teacher in all pictures, K cells of the student in one of them, D language
width, C width of the teacher, B samples, M positions, I images.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.errors import UserError
from manyeyes.model.encoders import encoder_from_spec, section_spec
from manyeyes.model.encoders.patch_embedding import attend
from manyeyes.model.fusion.base import tokens_of
from manyeyes.model.fusion.patch_embedding import PatchEmbeddingFusion
from manyeyes.model.rectangle import Rectangles
from manyeyes.model.weights.loading import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from transformers import PreTrainedConfig

    from manyeyes.config.recipe import AlignmentSection
    from manyeyes.model.encoders import Encoder


class PatchAligningLayer(nn.Module):
    """Compares hidden states at pictures with a teacher's features."""

    def __init__(
        self, section: AlignmentSection, teacher: Encoder, width: int, num_layers: int
    ) -> None:
        """Build with random weights.

        Args:
            section: stride, heads and weight.
            teacher: frozen here.
            width: of the language model.
            num_layers: of the language model.

        Raises:
            UserError: the stride leaves nothing to compare with, or heads do not divide.
        """
        super().__init__()
        self.layers = tuple(range(num_layers, -1, -section.stride))
        inner = teacher.spec.width
        if len(self.layers) < 2:
            raise UserError(
                f"model.alignment.stride is {section.stride}, but the language model has only "
                f"{num_layers} layers: lower stride."
            )
        if inner % section.heads:
            raise UserError(
                f"model.alignment.heads is {section.heads}, which does not divide the {inner} "
                f"channels of {section.teacher.name}."
            )
        self.heads = section.heads
        self.weight = section.weight
        self.norm_layer = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner, bias=False))
            for _ in self.layers
        )
        self.input_layer = nn.Linear(width, inner)
        self.output_layer = nn.Linear(inner, inner)
        # In a list, where parameters(), state_dict() and DeepSpeed do not find it.
        self._teacher = [teacher.requires_grad_(False).eval()]

    @property
    def teacher(self) -> Encoder:
        """The frozen encoder; it follows the layer's device and type when it is asked."""
        return self._teacher[0]

    def forward(
        self, states_TD: Sequence[Tensor], target_TC: Tensor, image_T: Tensor, counts_I: Tensor
    ) -> Tensor:
        """Return the loss, a float32 scalar.

        Args:
            states_TD: hidden states at the teacher's cells, in the order of ``layers``.
            target_TC: the teacher's features.
            image_T: which picture a cell is of.
            counts_I: cells of each picture, at least one.
        """
        dtype = self.input_layer.weight.dtype
        states_TD = [state.to(dtype) for state in states_TD]
        query_TC, *keys = (
            norm(state) for norm, state in zip(self.norm_layer, states_TD, strict=True)
        )
        keys_TJC = torch.stack(keys, dim=1)
        found_TC = attend(query_TC, keys_TJC, keys_TJC, heads=self.heads)
        aligned_TC = self.input_layer(states_TD[0]) + self.output_layer(found_TC)
        cosine_T = functional.cosine_similarity(aligned_TC.float(), target_TC.float(), dim=-1)
        sums_I = cosine_T.new_zeros(len(counts_I)).index_add(0, image_T, cosine_T)
        return 1.0 - (sums_I / counts_I).mean()

    @torch.no_grad()
    def look(self, pixels_I3SS: Tensor) -> Tensor:
        """Return the teacher's features of whole canvases, (I * G * G, C)."""
        teacher = self.teacher
        teacher.to(device=pixels_I3SS.device, dtype=self.input_layer.weight.dtype)
        features_ICGG: Tensor = teacher(pixels_I3SS)
        return tokens_of(features_ICGG).flatten(0, 1)


@dataclass
class Listener:
    """Keeps a pass's hidden states at the teacher's cells."""

    places: Tensor
    """(T, K) places in the flattened batch (B * M): the student's cells behind the teacher's."""
    states: dict[int, Tensor] = field(default_factory=dict)
    """(T, D) by number of hidden state: 0 the embeddings, n the output of layer n."""

    def hear(self, number: int, hidden_BMD: Tensor) -> None:
        """Keep a hidden state; the mean of the student's cells behind each of the teacher's."""
        cells, finer = self.places.shape
        flat = hidden_BMD.flatten(0, 1).index_select(0, self.places.flatten())
        self.states[number] = flat.view(cells, finer, -1).mean(dim=1) if finer > 1 else flat

    def hook(self, number: int) -> Callable[[nn.Module, object, Tensor], None]:
        """Return a forward hook that keeps the output of a decoder layer."""

        def keep(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
            self.hear(number, output)

        return keep


@dataclass(frozen=True)
class Lesson:
    """What one pass is compared on: pictures, and where the teacher's cells are in them."""

    layer: PatchAligningLayer
    fusion: PatchEmbeddingFusion
    pixels: Tensor
    image_sizes: Tensor | None

    @contextmanager
    def listening(
        self, decoder: nn.Module, embeddings_BMD: Tensor, image_starts_I: Tensor
    ) -> Iterator[Listener]:
        """Hear the chosen hidden states of a pass; the last one is the caller's to tell.

        Args:
            decoder: of the language model.
            embeddings_BMD: what goes into it.
            image_starts_I: place of each picture's first token in the flattened batch.
        """
        listener = Listener(self.places(image_starts_I))
        last = self.layer.layers[0]
        if 0 in self.layer.layers:
            listener.hear(0, embeddings_BMD)
        blocks = cast("nn.ModuleList", decoder.layers)
        handles = [
            blocks[number - 1].register_forward_hook(listener.hook(number))
            for number in self.layer.layers
            if 0 < number < last
        ]
        try:
            yield listener
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, listener: Listener, last_BMD: Tensor) -> Tensor:
        """Compare a pass that was listened to; ``last_BMD`` is its normalised output."""
        listener.hear(self.layer.layers[0], last_BMD)
        return self._compare([listener.states[number] for number in self.layer.layers])

    def idle_loss(self, visual_IVD: Tensor) -> Tensor:
        """Meet every module without the language model, from visual tokens (I, V, D); times 0."""
        images, longest = visual_IVD.shape[:2]
        listener = Listener(self.places(torch.arange(images, device=visual_IVD.device) * longest))
        listener.hear(0, visual_IVD)
        return 0.0 * self._compare([listener.states[0]] * len(self.layer.layers))

    def places(self, image_starts_I: Tensor) -> Tensor:
        """Return (T, K) places of the student's cells behind each of the teacher's."""
        coarse, step = self._coarse(), self.fusion.side // self.fusion.pieces
        image_T, row_T, column_T = coarse.cells
        inner = torch.arange(step, device="cpu")
        row_TKK = row_T.view(-1, 1, 1) * step + inner.view(1, -1, 1)
        column_TKK = column_T.view(-1, 1, 1) * step + inner
        row_length_T11 = (coarse.columns_I[image_T] * step + 1).view(-1, 1, 1)
        in_tokens_TK = (1 + row_TKK * row_length_T11 + column_TKK).flatten(1)
        device = image_starts_I.device
        places_TK: Tensor = image_starts_I[image_T.to(device)].unsqueeze(1)
        return places_TK + in_tokens_TK.to(device)

    def _compare(self, states_TD: list[Tensor]) -> Tensor:
        coarse, device = self._coarse(), self.pixels.device
        places_T = coarse.on_canvas_T(self.fusion.pieces).to(device)
        target_TC = self.layer.look(self.pixels).index_select(0, places_T)
        images = (coarse.image_T.to(device), coarse.num_cells_I.to(device))
        loss: Tensor = self.layer(states_TD, target_TC, *images)
        return loss

    def _coarse(self) -> Rectangles:
        """Return the pictures' rectangles in the teacher's cells."""
        pieces = self.fusion.pieces
        return Rectangles.of(self.image_sizes, len(self.pixels), pieces=pieces, side=pieces)


def lesson_of(
    layer: PatchAligningLayer | None,
    fusion: nn.Module,
    pixels: Tensor | None,
    image_sizes: Tensor | None,
) -> Lesson | None:
    """Return what a pass is compared on, or None where nothing is."""
    if layer is None or pixels is None or pixels.shape[0] == 0:
        return None
    assert isinstance(fusion, PatchEmbeddingFusion)
    return Lesson(layer, fusion, pixels, image_sizes)


def listen(
    lesson: Lesson | None, decoder: nn.Module, embeddings_BMD: Tensor, image_starts_I: Tensor
) -> AbstractContextManager[Listener | None]:
    """Return ``Lesson.listening``, or a context of nothing where nothing is compared."""
    if lesson is None:
        return nullcontext()
    return lesson.listening(decoder, embeddings_BMD, image_starts_I)


def build_alignment(
    section: AlignmentSection, fusion: nn.Module, llm: PreTrainedConfig, *, load: bool
) -> PatchAligningLayer:
    """Build the layer a recipe describes, with its teacher.

    Args:
        section: of the recipe.
        fusion: the model's.
        llm: config of the language model.
        load: read the teacher's weights.

    Raises:
        UserError: the teacher's grid is not that of the pictures, or its weights cannot be read.
    """
    assert isinstance(fusion, PatchEmbeddingFusion)  # the recipe says so
    spec = section_spec(section.teacher)
    if spec.native_grid != fusion.pieces:
        raise UserError(
            f"The teacher {section.teacher.spec!r} has {spec.native_grid} cells a side, but the "
            f"pictures are laid out in {fusion.pieces}: take a teacher with {fusion.pieces}."
        )
    teacher = encoder_from_spec(spec, grid=spec.native_grid, normalization="per_encoder")
    if load:
        load_weights(teacher, section.teacher.weights)
    return PatchAligningLayer(section, teacher, int(llm.hidden_size), int(llm.num_hidden_layers))
