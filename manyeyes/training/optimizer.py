"""AdamW with groups by learning rate, and schedules that are functions of the step.

Design decisions:

- A schedule is a pure factor of (step, steps): nothing to save and nothing to restore.
- Vectors (norms, biases, scales) are not decayed: decay pulls a norm's gain to zero, which is not
  the function it is meant to simplify. Only tensors of two or more dimensions are.
- Rates are per group and every group follows the same schedule, so that their ratio holds.
- Eight bits a moment are bitsandbytes' AdamW8bit; its state is quantised blocks with their scales,
  which are tensors like any other, and a count of steps that is not.
- The betas are LLaVA-1.5's (0.9, 0.999), whose recipes the systems here follow.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, assert_never

import torch

from manyeyes.config.recipe import Constant, Cosine
from manyeyes.errors import UserError
from manyeyes.training.adapters import bitsandbytes
from manyeyes.training.freeze import require_match

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from manyeyes.config.recipe import LearningRate, TrainSection

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def build_optimizer(model: nn.Module, section: TrainSection) -> torch.optim.Optimizer:
    """Return AdamW over the parameters that train.

    Each group carries its ``base_rate``, which :func:`set_learning_rate` scales.

    Raises:
        UserError: nothing trains, a pattern of ``learning_rates`` matches nothing that does, or
            the optimizer's package is missing.
    """
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise UserError("train: nothing trains; name at least one part of the model.")
    for entry in section.learning_rates:
        require_match(entry.modules, list(trainable), where="learning_rates")
    factor = section.rate_factor()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        rate = _rate_of(name, section.learning_rates, section.learning_rate) * factor
        decay = section.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [
        {"params": parameters, "lr": rate, "base_rate": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    if section.optimizer == "adamw_8bit":
        library = bitsandbytes("optimizer: adamw_8bit", "optimizer: adamw")
        small: torch.optim.Optimizer = library.optim.AdamW8bit(settings, betas=BETAS, eps=EPSILON)
        return small
    return torch.optim.AdamW(settings, betas=BETAS, eps=EPSILON, fused=True)


def _rate_of(name: str, entries: Sequence[LearningRate], default: float) -> float:
    """Return the rate of the first entry that matches a parameter's name."""
    for entry in entries:
        if fnmatchcase(name, entry.modules):
            return entry.learning_rate
    return default


def schedule_factor(schedule: Cosine | Constant, step: int, steps: int) -> float:
    """Return the factor on every learning rate at a step.

    Linear warm-up over ``ceil(warmup * steps)`` steps, then half a cosine to zero (SGDR,
    arXiv:1608.03983, equation 5, one period) or a constant.

    Args:
        schedule: its kind and warm-up.
        step: from 0.
        steps: of the whole stage.
    """
    warmup = math.ceil(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    match schedule:
        case Cosine():
            done = (step - warmup) / max(1, steps - warmup)
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case Constant():
            return 1.0
        case _:
            assert_never(schedule)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to its base rate times ``factor`` and return the highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor
    return float(max(group["lr"] for group in optimizer.param_groups))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]
) -> dict[str, torch.Tensor]:
    """Return the optimizer's state by ``field/parameter name``; none of it shares memory."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for parameter, state in optimizer.state.items():
        for field, value in state.items():
            tensor = value if torch.is_tensor(value) else torch.tensor(value)
            # The optimizer of eight bits has one table of values for all parameters.
            found[f"{field}/{names[parameter]}"] = (
                tensor.clone() if tensor.data_ptr() in seen else tensor
            )
            seen.add(tensor.data_ptr())
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Put back what :func:`optimizer_tensors` returned."""
    optimizer.state.clear()
    for key, value in tensors.items():
        field, name = key.split("/", 1)
        parameter = parameters[name]
        # torch's AdamW counts steps in float32, where its fused kernel needs it: with the
        # parameter. The one of eight bits counts in a plain number.
        is_plain = value.ndim == 0 and not value.is_floating_point()
        optimizer.state[parameter][field] = int(value) if is_plain else value.to(parameter.device)
