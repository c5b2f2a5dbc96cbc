"""How near the language model comes to what the processor can do, and what its loss needs.

- MFU (model FLOPs utilisation): the operations a step needs (``training.flops``: no padding,
  causal attention at half) per second, over the rate of a large matrix product measured right
  before and after the step, in the same type. The configuration is SmolLM2-135M's with random
  weights; all positions are learned and everything trains.
- Memory of the loss: highest bytes of tensors alive in forward and backward of the head and the
  cross-entropy, counted by watching every tensor that is made, so it has no spread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.results import Row, Spread
from benchmarks.shapes import Shape, build_model
from manyeyes.config.recipe import TrainSection
from manyeyes.data.loading.batches import Batch
from manyeyes.data.loading.conversation import IGNORED
from manyeyes.model.loss import Learned, supervised_loss
from manyeyes.plan.ledger import Ledger
from manyeyes.training.cost import cost_of, trained_parts
from manyeyes.training.distributed import World
from manyeyes.training.engine import build_engine
from manyeyes.training.flops import step_flops
from manyeyes.training.freeze import apply_trainable
from manyeyes.training.peak import measured_peak

if TYPE_CHECKING:
    from collections.abc import Callable

    from manyeyes.model.vlm import VisionLanguageModel

SMOLLM2_135M = Shape(
    vocabulary=49152, width=576, layers=30, mlp=1536, heads=9, key_heads=3, tied=True
)
CPU = torch.device("cpu")
MFU_TARGETS = {"float32": 0.65, "bfloat16": 0.55}


@dataclass(frozen=True)
class Load:
    """What a step of the MFU measurement works on."""

    shape: Shape = SMOLLM2_135M
    rows: int = 4
    length: int = 128


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def utilisation_row(load: Load, section: TrainSection, rounds: int, device: torch.device) -> Row:
    """Measure the MFU of training steps in the section's precision."""
    model = build_model(load.shape, experts=("clip",))
    nn.Module.to(model, device)  # transformers' own wraps the types away
    apply_trainable(model, section.train)
    engine = build_engine(model, section, World())
    batch = _batch(load)
    flops = needed_flops(model, load)
    dtype = torch.bfloat16 if section.precision == "bfloat16" else torch.float32
    shares, rates = [], []
    for turn in range(rounds + 1):
        before = measured_peak(device, dtype)
        began = time.perf_counter()
        text_loss, _ = engine.forward(batch, idle_pixels=None, maps=None)
        engine.backward(text_loss, last=True)
        engine.step()
        _finish(device)
        seconds = time.perf_counter() - began
        # A step that did more than both products was measured beside something else.
        rate = max((before + measured_peak(device, dtype)) / 2, flops / seconds)
        if turn:  # the first step makes the optimizer's state
            shares.append(flops / seconds / rate)
            rates.append(rate)
    details = f"matmul {sorted(rates)[len(rates) // 2] / 1e9:,.0f} GFLOP/s"
    name = f"MFU of the 135M language model, {section.precision}"
    return Row(name, "", Spread.of(shares), MFU_TARGETS[section.precision], details)


def needed_flops(model: VisionLanguageModel, load: Load) -> float:
    """Return the operations of a step over rows of one length, every position learned."""
    return step_flops(
        cost_of(model, 112),
        trained_parts(model),
        [load.length] * load.rows,
        num_images=0,
        num_supervised=(load.length - 1) * load.rows,
    )


def _batch(load: Load) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, load.shape.vocabulary, (load.rows, load.length), generator=generator)
    return Batch(
        sample_ids=tuple(str(row) for row in range(load.rows)),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=ids,
        pixels=None,
        image_sizes=None,
        lengths=(load.length,) * load.rows,
        num_supervised=load.rows * (load.length - 1),
    )


def loss_memory_row(
    vocabulary: int, share: float, *, length: int, device: torch.device = CPU
) -> Row:
    """Compare the memory of our loss with that of float32 logits of every position.

    Args:
        vocabulary: of the head.
        share: of positions that are learned.
        length: of each of four samples.
        device: where it is computed.
    """
    width, rows = 64, 4
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, length, width, generator=generator).to(device)
    labels = torch.randint(0, vocabulary, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) >= share] = IGNORED
    labels = labels.to(device)
    head = nn.Linear(width, vocabulary, bias=False, device=device)

    def product() -> Tensor:
        learned = Learned.of(labels, device)
        return supervised_loss(hidden.requires_grad_(), learned, head, vocabulary)[0]

    def baseline() -> Tensor:
        logits = head(hidden.requires_grad_()).float()
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    mine, theirs = peak_of(product), peak_of(baseline)
    return Row(
        f"memory of the loss, vocabulary {vocabulary}, {share:.0%} learned",
        "float32 logits of every position",
        Spread.of_pairs([mine], [theirs]),
        4.0,
        f"{mine / 2**20:.0f} MiB against {theirs / 2**20:.0f}",
    )


def peak_of(function: Callable[[], Tensor]) -> int:
    """Return the highest bytes alive in a loss's forward and backward, its inputs not counted."""
    with Ledger() as counter:
        loss = function()
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
    return int(counter.peak)
