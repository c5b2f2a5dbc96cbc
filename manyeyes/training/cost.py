"""Read off a vision-language model what its operations depend on (for ``flops``)."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from manyeyes.model.last_layer import single_position_parts
from manyeyes.model.transformer import decoder_of
from manyeyes.training.adapters import is_adapter
from manyeyes.training.flops import ModelCost, Trained

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manyeyes.model.vlm import VisionLanguageModel


def cost_of(model: VisionLanguageModel, canvas_size: int) -> ModelCost:
    """Count a model's parameters and run one picture through its eyes under a FLOP counter."""
    config = model.llm.config
    encoder_flops, fusion_flops = _vision_flops(model, canvas_size)
    return ModelCost(
        block_parameters=_used_parameters(model),
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        vocabulary=int(config.vocab_size),
        projector_parameters=sum(p.numel() for p in model.projector.parameters()),
        num_visual_tokens=model.config.num_visual_tokens,
        encoder_flops=encoder_flops,
        fusion_flops=fusion_flops,
        learned_only_parameters=_learned_only_parameters(model),
    )


def _used_parameters(model: VisionLanguageModel) -> int:
    """Count what one position uses of the language model's layers: of experts, the chosen ones."""
    config = model.llm.config
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {id(table) for end in ends for table in end.parameters()}
    share = 1.0
    if getattr(config, "num_local_experts", None):
        share = config.num_experts_per_tok / config.num_local_experts
    return sum(
        int(_numbers(parameter) * (share if ".experts." in name else 1.0))
        for name, parameter in model.llm.named_parameters()
        if id(parameter) not in outside
    )


def _numbers(parameter: torch.nn.Parameter) -> int:
    """Return how many numbers a parameter holds; in four bits there are two in an element."""
    quantised = getattr(parameter, "quant_state", None)
    return parameter.numel() if quantised is None else int(quantised.shape.numel())


def _learned_only_parameters(model: VisionLanguageModel) -> int:
    """Count what only learned positions use; a teacher is compared with the others, too."""
    if model.alignment is not None:
        return 0
    parts = single_position_parts(decoder_of(model.llm))
    return sum(_numbers(parameter) for part in parts for parameter in part.parameters())


@torch.no_grad()
def _vision_flops(model: VisionLanguageModel, canvas_size: int) -> tuple[dict[str, float], float]:
    """Send one blank picture through experts and fusion; return what each expert, and it, cost.

    An expert that a fusion shows several views of a picture counts with all of them. What a fusion
    does between an expert's blocks counts as that expert's.
    """
    device = next(model.parameters()).device
    shape = (1, 3, canvas_size, canvas_size)
    picture = torch.zeros(shape, dtype=torch.uint8, device=device)
    flops = dict.fromkeys(model.experts, 0.0)
    with _frozen(model), FlopCounterMode(display=False) as counter, ExitStack() as hooks:

        def count(name: str, expert: torch.nn.Module) -> None:
            def before(*_: object) -> None:
                flops[name] -= counter.get_total_flops()

            def after(*_: object) -> None:
                flops[name] += counter.get_total_flops()

            hooks.callback(expert.register_forward_pre_hook(before).remove)
            hooks.callback(expert.register_forward_hook(after).remove)

        for name, expert in model.experts.items():
            count(name, expert)
        maps = model.see(picture)
        model.fusion(maps)
        model.fusion.rehearse(maps)
        total = float(counter.get_total_flops())
    rest = total - sum(flops.values())
    if model.alignment is not None:
        with FlopCounterMode(display=False) as teaching:
            model.alignment.look(picture)
        flops["alignment.teacher"] = float(teaching.get_total_flops())
    return flops, rest


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """Let nothing train for a while: the counter stumbles over views of what does."""
    trains = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trains:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trains:
            parameter.requires_grad_(True)


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
        fusion=trains(model.fusion),
    )
