"""Read off a vision-language model what its operations depend on (for ``flops``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from manyeyes.train.adapters import is_adapter
from manyeyes.train.flops import ModelCost, Trained

if TYPE_CHECKING:
    from manyeyes.model.vlm import VisionLanguageModel


def cost_of(model: VisionLanguageModel, canvas_size: int) -> ModelCost:
    """Count a model's parameters and run one picture through each encoder under a FLOP counter."""
    config = model.llm.config
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {id(table): table.numel() for end in ends for table in end.parameters()}
    total = sum(parameter.numel() for parameter in model.llm.parameters())
    return ModelCost(
        block_parameters=total - sum(outside.values()),
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        vocabulary=int(config.vocab_size),
        projector_parameters=sum(p.numel() for p in model.projector.parameters()),
        num_visual_tokens=model.config.num_visual_tokens,
        encoder_flops=_encoder_flops(model, canvas_size),
    )


@torch.no_grad()
def _encoder_flops(model: VisionLanguageModel, canvas_size: int) -> dict[str, float]:
    device = next(model.parameters()).device
    shape = (1, 3, canvas_size, canvas_size)
    picture = torch.zeros(shape, dtype=torch.uint8, device=device)
    flops = {}
    for name, encoder in model.experts.items():
        with FlopCounterMode(display=False) as counter:
            encoder(picture)
        flops[name] = float(counter.get_total_flops())
    return flops


def trained_parts(model: VisionLanguageModel) -> Trained:
    """Return which parts of the model have parameters that train."""

    def trains(module: torch.nn.Module) -> bool:
        return any(parameter.requires_grad for parameter in module.parameters())

    # Under an adapter a weight gets no gradient, but what passes it does: as if something in front
    # of the language model trained.
    in_llm = [name for name, p in model.llm.named_parameters() if p.requires_grad]
    adapters = any(is_adapter(name) for name in in_llm)
    return Trained(
        encoders=frozenset(name for name, encoder in model.experts.items() if trains(encoder)),
        projector=trains(model.projector) or adapters,
        language_model=any(not is_adapter(name) for name in in_llm),
    )
