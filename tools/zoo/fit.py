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

from tools.zoo.muon import Muon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from manyeyes.runtime.progress import Progress


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one part is trained."""

    steps: int
    learning_rate: float
    batch_size: int = 64
    warmup: int = 50
    weight_decay: float = 0.05
    matrix_learning_rate: float = 0.0
    """Of Muon (Jordan et al. 2024) for the hidden matrices; 0 leaves everything to AdamW."""


def share_at(step: int, schedule: Schedule) -> float:
    """Return a step's share of the learning rate: linear warm-up, then half a cosine to zero."""
    warmup = min(schedule.warmup, max(1, schedule.steps // 4))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, schedule.steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _optimizers(modules: Iterable[nn.Module], schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Return AdamW, and Muon for the matrices between layers where the schedule wants it.

    Muon orthogonalises each update, which is meant for maps between hidden layers; embeddings,
    heads and vectors stay with AdamW.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    embeddings = {
        layer.weight
        for module in modules
        for layer in module.modules()
        if isinstance(layer, nn.Embedding)
    }
    hidden = [
        p
        for p in parameters
        if schedule.matrix_learning_rate > 0.0 and p.ndim == 2 and p not in embeddings
    ]
    taken = set(hidden)
    decayed = [p for p in parameters if p.ndim >= 2 and p not in taken]
    plain = [p for p in parameters if p.ndim < 2]
    rate, decay = schedule.learning_rate, schedule.weight_decay
    groups = [
        {"params": decayed, "weight_decay": decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    ]
    if hidden:
        matrix_rate = schedule.matrix_learning_rate
        optimizers.append(Muon(hidden, lr=matrix_rate, weight_decay=decay))
    return optimizers


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
    optimizers = _optimizers(trained, schedule)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    generator = torch.Generator().manual_seed(seed)
    for module in trained:
        module.train()
    losses = []
    for step in range(schedule.steps):
        share = share_at(step, schedule)
        for optimizer, full in zip(optimizers, rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group, rate in zip(optimizer.param_groups, full, strict=True):
                group["lr"] = share * rate
        loss = loss_of(generator)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
        if step % 50 == 0 or step == schedule.steps - 1:
            progress.step(step + 1, schedule.steps, loss=losses[-1])
    for module in trained:
        module.eval()
    return losses
