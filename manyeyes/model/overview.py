"""What a model is made of, counted and measured on the model itself, for ``manyeyes show``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyeyes.data.loading.conversation import IMAGE_TOKEN
from manyeyes.model.transformer import decoder_of, head_of

if TYPE_CHECKING:
    from manyeyes.model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class ModuleSummary:
    """One line of ``describe``."""

    name: str
    kind: str
    num_parameters: int
    num_trainable: int


@dataclass(frozen=True)
class TracedShape:
    """The shape one real tensor had at one place of the path."""

    where: str
    shape: tuple[int, ...]
    dtype: str


def describe(model: VisionLanguageModel) -> list[ModuleSummary]:
    """Return one line per encoder, then fusion, projector and language model."""
    rows: list[tuple[str, str, nn.Module]] = [
        (f"encoders.{name}", encoder.spec.family, encoder)
        for name, encoder in model.experts.items()
    ]
    rows.append(("fusion", str((model.config.fusion or {})["kind"]), model.fusion))
    rows.append(("projector", model.config.projector, model.projector))
    rows.append(("llm", str(model.llm.config.model_type), model.llm))
    if model.alignment is not None:
        rows.append(("alignment", "patch_aligning_layer", model.alignment))
        teacher = model.alignment.teacher
        rows.append(("alignment teacher", teacher.spec.family, teacher))
    return [ModuleSummary(name, kind, *count_parameters(part)) for name, kind, part in rows]


@torch.no_grad()
def trace_shapes(model: VisionLanguageModel, canvas_size: int) -> list[TracedShape]:
    """Send one grey image and one text token down the path; return the shapes they had.

    Works on the meta device too. The splice needs values, so its shape follows there from the
    numbers of positions.
    """
    shapes: list[TracedShape] = []

    def record(where: str, tensor: Tensor) -> Tensor:
        name = str(tensor.dtype).removeprefix("torch.")
        shapes.append(TracedShape(where, tuple(tensor.shape), name))
        return tensor

    size = (1, 3, canvas_size, canvas_size)
    canvas = record("canvas", torch.full(size, 128, dtype=torch.uint8, device=model.device))
    for name, encoder in model.experts.items():
        pixels = record(f"encoders.{name} input", encoder.preprocess(canvas))
        native = record(f"encoders.{name} native", encoder.native(pixels))
        record(f"encoders.{name} grid", encoder.to_grid(native))
    groups = model.fusion(model.see(canvas))
    for group in groups:
        record("fusion", group)
    visual = record("projector", model.fusion.arrange(model.projector(groups)))
    embeddings = record("splice", _splice_one(model, visual))
    hidden = decode(model, embeddings)
    record("llm hidden", hidden)
    record("llm logits", head_of(model.llm)(hidden))
    return shapes


def decode(model: VisionLanguageModel, embeddings: Tensor) -> Tensor:
    """Run embeddings (B, M, D) through the decoder, on any device; return hidden states."""
    mask = None
    if embeddings.device.type == "meta":
        # Without a mask transformers looks at the values of positions, which are none there.
        length = embeddings.shape[1]
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")
    decoder = decoder_of(model.llm)
    output = decoder(
        inputs_embeds=embeddings.to(model.llm.dtype), attention_mask=mask, use_cache=False
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _splice_one(model: VisionLanguageModel, visual: Tensor) -> Tensor:
    """Return one image's tokens (1, V, D) and one text token as the decoder gets them."""
    if model.device.type == "meta":
        return torch.cat([visual, visual[:, :1]], dim=1)
    input_ids = torch.tensor([[IMAGE_TOKEN, 0]], device=model.device)
    return model.splice_inputs(input_ids, visual, None, None, side="right").embeddings


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return (all, trainable) parameters; tied ones count once."""
    parameters = list(module.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return sum(parameter.numel() for parameter in parameters), trainable
