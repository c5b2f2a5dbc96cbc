"""What the loop asks of an engine, and the table of engines.

An engine owns the arithmetic of a step: forward, backward, the sum of gradients over processes,
clipping, the optimizer. The loop owns everything else. An engine's state is whole tensors by
parameter name, whatever the engine shares out, so that it can be continued on any number of
processes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol, assert_never

import torch
from torch import nn

from manyeyes.config.recipe import DeepSpeed, SingleProcess
from manyeyes.errors import UserError
from manyeyes.training.optimizer import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor

    from manyeyes.config.recipe import TrainSection
    from manyeyes.data.loading.batches import Batch
    from manyeyes.model.loss import VisionLanguageOutput
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.training.checkpoint import State
    from manyeyes.training.distributed import World

Tensors = dict[str, torch.Tensor]
CPU_LENGTHS = 64
"""In bfloat16 on a CPU lengths are multiples of this."""


class Engine(Protocol):
    """The arithmetic of a step. What is called *collective* every process calls together."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""

    def start(self, state: State | None) -> None:
        """Make ready to train from the model's weights, or from a state. Collective."""

    def set_rate(self, factor: float) -> float:
        """Scale every learning rate and return the highest."""

    def forward(
        self, batch: Batch, *, idle_pixels: Tensor | None, maps: list[Tensor] | None
    ) -> Tensor:
        """Return a micro-batch's two mean losses (2,). Collective.

        The first is over its learned positions, the second the alignment's over its pictures, 0
        where the model has none.

        Args:
            batch: the micro-batch.
            idle_pixels: (1, 3, S, S) to send through the vision path for nothing but company:
                another process has pictures at this place and this one has not.
            maps: what the encoders make of the batch's pictures, where that is known already.
        """

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a loss's gradients to the step's; ``last`` ends the step. Collective."""

    def step(self) -> float:
        """Clip, update the weights, forget the gradients; return the norm before clipping.

        Where the norm is not finite the weights stay as they are. Collective.
        """

    def tensors(self) -> tuple[Tensors, Tensors]:
        """Return the weights that train and the optimizer's state, whole, in process 0.

        Collective; the other processes get empty ones.
        """

    def finish(self) -> None:
        """Leave the model with plain, whole, float32 weights in process 0. Collective."""


def build_engine(model: VisionLanguageModel, section: TrainSection, world: World) -> Engine:
    """Return the engine of a section.

    Raises:
        UserError: the engine does not train in that many processes.
    """
    match section.engine:
        case SingleProcess():
            if world.size > 1:
                raise UserError(
                    f"engine: single trains in one process, but {world.size} were started; "
                    "start one, or write kind: deepspeed."
                )
            return SingleEngine(model, section)
        case DeepSpeed():
            from manyeyes.training.zero import DeepSpeedEngine

            return DeepSpeedEngine(model, section, section.engine, world)
        case _:
            assert_never(section.engine)


class SingleEngine:
    """One process, plain PyTorch: float32 weights, autocast for ``bfloat16``.

    It computes on the first accelerator, where there is one.
    """

    def __init__(self, model: VisionLanguageModel, section: TrainSection) -> None:
        if torch.cuda.is_available():
            nn.Module.to(model, torch.device("cuda", 0))
        self.model = model
        self.section = section
        self.optimizer = build_optimizer(model, section)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    def start(self, state: State | None) -> None:
        """Continue a state, if there is one."""
        if state is None:
            return
        with torch.no_grad():
            for name, value in state.weights.items():
                self.parameters[name].copy_(value)
        restore_optimizer(self.optimizer, state.optimizer, self.parameters)

    def set_rate(self, factor: float) -> float:
        """Scale every learning rate and return the highest."""
        return set_learning_rate(self.optimizer, factor)

    def forward(
        self, batch: Batch, *, idle_pixels: Tensor | None, maps: list[Tensor] | None
    ) -> Tensor:
        """Return the mean losses over a micro-batch's learned positions and pictures."""
        assert idle_pixels is None
        with precision(self.section, self.device):
            return both_losses(self.model(**model_inputs(batch, self.device, maps)))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a loss's gradients."""
        del last
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it

    def step(self) -> float:
        """Clip, update, forget; return the norm before clipping."""
        norm = clip(self.parameters, self.section.gradient_clipping)
        if torch.isfinite(torch.tensor(norm)):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> tuple[Tensors, Tensors]:
        """Return the weights that train and the optimizer's state."""
        names: dict[Tensor, str] = {p: name for name, p in self.parameters.items()}
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        return weights, optimizer_tensors(self.optimizer, names)

    def finish(self) -> None:
        """Do nothing: the model is whole at any time."""


def clip(parameters: Mapping[str, nn.Parameter], limit: float) -> float:
    """Scale gradients down to a norm of at most ``limit`` and return the norm they had."""
    reached = [p for p in parameters.values() if p.grad is not None]
    return float(torch.nn.utils.clip_grad_norm_(reached, limit))


def model_inputs(batch: Batch, device: torch.device, maps: list[Tensor] | None) -> dict[str, Any]:
    """Return a micro-batch as the model's arguments; pixels or maps, and they on its device."""
    unseen = maps is None and batch.pixels is not None
    return {
        # What is laid out is read on the CPU: a device that is asked about it is waited for.
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": batch.labels,
        "pixels": batch.pixels.to(device) if unseen and batch.pixels is not None else None,
        "maps": maps,
        "image_sizes": batch.image_sizes,
        "document_lengths": batch.lengths if batch.packed else None,
    }


def both_losses(output: VisionLanguageOutput) -> Tensor:
    """Return (2,) float32: the mean loss over learned positions, the alignment's or 0."""
    loss, aligned = output.loss, output.alignment_loss
    assert loss is not None
    return torch.stack([loss, torch.zeros_like(loss) if aligned is None else aligned])


def length_multiple(precision: str, device: torch.device) -> int:
    """Return to a multiple of how many positions a micro-batch is padded.

    In bfloat16 on a CPU, oneDNN keeps what it prepares for each shape it meets, for ever: with
    every length that is new a training grew, by a gigabyte and a half in a hundred steps.
    """
    return CPU_LENGTHS if precision == "bfloat16" and device.type == "cpu" else 1


def precision(section: TrainSection, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of the forward pass."""
    if section.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
