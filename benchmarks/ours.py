"""The product's side of every comparison: all that the suite calls in ``manyeyes.training``.

Training is timed as the metrics file does it: each step with its wait for data, without saving. The
wait for the very first batch is left out, as it is for the other side.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.clock import Cost, cpu_seconds
from manyeyes.artifact.files import CURVES_FILE
from manyeyes.data.loading.batches import BatchPlan, Share
from manyeyes.data.loading.canvases import PixelCache
from manyeyes.data.loading.loader import BatchLoader
from manyeyes.data.loading.packing import PackPlan, plan_of
from manyeyes.model.processor import Processor
from manyeyes.runtime.home import HOME
from manyeyes.runtime.progress import Progress
from manyeyes.training.checkpoint import clear_state
from manyeyes.training.distributed import World
from manyeyes.training.engine import build_engine
from manyeyes.training.freeze import apply_trainable
from manyeyes.training.loop import train
from manyeyes.training.metering import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.workload import Workload
    from manyeyes.config.recipe import TrainSection
    from manyeyes.data.loading.batches import Batch
    from manyeyes.data.loading.packing import Plan
    from manyeyes.model.vlm import VisionLanguageModel


class _Watch(Progress):
    """Notes the processor time at the end of every step."""

    def __init__(self) -> None:
        super().__init__("benchmark")
        self.cpu: list[float] = []

    def step(self, *args: object, **options: object) -> None:
        """Take the time, and say nothing."""
        del args, options
        self.cpu.append(cpu_seconds())


def train_epoch(
    model: VisionLanguageModel, workload: Workload, section: TrainSection, folder: Path, seed: int
) -> Cost:
    """Train one epoch in place and return what it cost.

    The processor time of the first step is not known and taken to be the mean of the others.

    Args:
        model: at its starting weights.
        workload: the samples.
        section: one epoch of them.
        folder: for states and metrics; emptied of both.
        seed: of the plan.
    """
    watch = _Watch()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    train(
        model,
        workload.dataset,
        workload.codec,
        section,
        seed=seed,
        out=folder,
        progress=watch,
    )
    clear_state(folder)
    path = folder / CURVES_FILE
    rows = [Row.model_validate_json(line) for line in path.read_text("utf-8").splitlines()]
    path.unlink()
    between = watch.cpu[-1] - watch.cpu[0]
    return Cost(
        sum(row.seconds for row in rows) - rows[0].data_wait,
        between * len(rows) / max(1, len(rows) - 1),
        losses=tuple(row.loss for row in rows),
        peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    )


def loss_and_gradients(
    model: VisionLanguageModel, workload: Workload, section: TrainSection, indices: Sequence[int]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the engine's loss of some samples and every trained parameter's gradient."""
    apply_trainable(model, section.train)
    engine = build_engine(model, section, World())
    loss, _ = engine.forward(batch_of(workload, section, indices), idle_pixels=None, maps=None)
    engine.backward(loss, last=True)
    gradients = {
        name: parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), gradients


def batch_of(workload: Workload, section: TrainSection, indices: Sequence[int]) -> Batch:
    """Make the batch of some samples as the loader does."""
    convert = Processor(canvas_size=workload.canvas_size)
    cache = PixelCache(workload.dataset, lambda image: convert.pixels([image])[0])
    plan = BatchPlan.of(
        workload.prepared, section.sources, seed=0, micro_size=len(indices), num_micro=1
    )
    return BatchLoader(workload.prepared, plan, cache, 0, 1).make_micro(indices)


def order_of(workload: Workload, section: TrainSection, *, seed: int) -> list[int]:
    """Return the samples that ``train_epoch`` trains on, in its order."""
    plan = plan_of(workload.prepared, section.sources, section.batch, seed=seed, num_processes=1)
    return [
        index for step in range(section.num_steps) for batch in plan.step(step) for index in batch
    ]


@contextmanager
def home_in(folder: Path) -> Iterator[None]:
    """Keep features in ``folder`` and nowhere else."""
    before = os.environ.get(HOME)
    os.environ[HOME] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[HOME]
        else:
            os.environ[HOME] = before


def planned_steps(
    lengths: Sequence[int],
    pictures: Sequence[bool],
    batch_size: int,
    world_size: int,
    seed: int,
    *,
    budget: int | None = None,
) -> list[list[list[int]]]:
    """Return the product's plan for one epoch: turns, of ranks, of sample indices.

    Args:
        lengths: per sample its positions.
        pictures: per sample whether it shows one.
        batch_size: samples of a rank.
        world_size: ranks.
        seed: of the plan.
        budget: most positions of a pack; None for no packs. Either way a step has the same samples.
    """
    shown, sizes = np.array(pictures, np.int64), np.array(lengths, np.int64)
    plain = BatchPlan(
        seed=seed,
        pools=(tuple(range(len(lengths))),),
        weights=(1.0,),
        keys=np.stack([shown, shown, sizes], axis=1),
        micro_size=batch_size,
        num_micro=world_size,
    )
    plan: Plan = plain
    if budget is not None:
        plan = PackPlan(plain, sizes, shown, budget, world_size)
    turns = []
    for step in range(len(lengths) // (batch_size * world_size)):
        batches = plan.step(step)
        by_rank = [plan.places(step, Share(rank, world_size)) for rank in range(world_size)]
        turns += [[list(batches[place]) for place in turn] for turn in zip(*by_rank, strict=True)]
    return turns
