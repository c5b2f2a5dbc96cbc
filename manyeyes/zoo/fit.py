"""One optimisation loop for every part of the zoo: AdamW, warm-up and cosine, fixed seeds.

The objectives differ, the loop does not: an objective is a function from a generator of random
numbers to a loss. All randomness of a step comes from that generator, so that a part built twice on
one machine has the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from manyeyes.progress import Progress


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one part is trained."""

    steps: int
    learning_rate: float
    batch_size: int = 64
    warmup: int = 50
    weight_decay: float = 0.05


def learning_rate_at(step: int, schedule: Schedule) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine to zero."""
    warmup = min(schedule.warmup, max(1, schedule.steps // 4))
    if step < warmup:
        return schedule.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, schedule.steps - warmup)
    return schedule.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    listed = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in listed if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in listed if p.ndim < 2], "weight_decay": 0.0},
    ]


def fit(
    modules: Iterable[nn.Module],
    loss_of: Callable[[torch.Generator], Tensor],
    schedule: Schedule,
    *,
    seed: int,
    progress: Progress,
) -> list[float]:
    """Train `modules` on `loss_of(generator)` and return the loss of every step."""
    trained = list(modules)
    parameters = [p for module in trained for p in module.parameters()]
    optimizer = torch.optim.AdamW(
        _groups(parameters, schedule.weight_decay), lr=schedule.learning_rate, betas=(0.9, 0.98)
    )
    generator = torch.Generator().manual_seed(seed)
    for module in trained:
        module.train()
    losses = []
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, schedule)
        loss = loss_of(generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 50 == 0 or step == schedule.steps - 1:
            progress.step(step + 1, schedule.steps, loss=losses[-1])
    for module in trained:
        module.eval()
    return losses
