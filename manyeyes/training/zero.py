"""DeepSpeed: training in several processes, which may share out state, gradients and weights.

Design decisions:

- The optimizer is torch's AdamW, passed in: DeepSpeed's own ones compile for minutes and add
  nothing here. Its one operator for CPUs (all-reduce in shared memory) is left out for the same
  reason; gloo does it.
- The model is built and loaded whole, then shared out. ``zero.Init`` would build it in parts, but
  skips Hugging Face's initialisation without a word.
- ``bfloat16`` casts the weights and keeps float32 masters in the optimizer. The masters start from
  the float32 weights, not from the rounded ones, and frozen weights are given back unrounded.
- Losses arrive weighted by their share of the whole step's learned positions. DeepSpeed averages
  gradients over processes, so they are multiplied by the number of processes first.
- Every process must meet the same modules in the same order, or their collectives wait for each
  other: a process without pictures while another has some sends a blank one along.
- At the first and the last turn of a step every trained parameter must get a gradient, be it zero:
  DeepSpeed clears its buffers at the first and (offloaded) hands them over at the last, so that a
  parameter without one there is updated with the gradient of the step before. So these turns
  always show a picture where pictures train something; ``work`` sees to it.
"""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manyeyes.runtime import ranks
from manyeyes.training.engine import Tensors, both_losses, clip, model_inputs
from manyeyes.training.optimizer import build_optimizer, set_learning_rate
from manyeyes.training.shards import MOMENTS, shards_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from manyeyes.config.recipe import DeepSpeed, TrainSection
    from manyeyes.data.loading.batches import Batch
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.training.checkpoint import State
    from manyeyes.training.distributed import World


class LossOnly(nn.Module):
    """The model, returning what backward needs and nothing that DeepSpeed would look through."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        """Return the two mean losses (2,), see ``engine.both_losses``."""
        return both_losses(self.model(**inputs))


class DeepSpeedEngine:
    """Trains through DeepSpeed; see the module's text."""

    def __init__(
        self, model: VisionLanguageModel, section: TrainSection, engine: DeepSpeed, world: World
    ) -> None:
        self.model = model
        self.section = section
        self.choice = engine
        self.world = world
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", ranks.local_rank())
        self.optimizer = build_optimizer(model, section)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def start(self, state: State | None) -> None:
        """Give every process the weights of process 0, share them out, restore the moments."""
        masters: Tensors = {}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if state is not None and self.world.leads:
                    parameter.copy_(state.weights[name])
                masters[name] = self.world.broadcast(parameter.detach().clone())
                parameter.copy_(masters[name])
        self._keep_frozen()
        with self.world.watching():
            self.engine = _initialize(self)
        self.shards = shards_of(self.engine, self.optimizer, self.parameters)
        self.shards.prepare(int(self.world.broadcast(torch.tensor(_steps_of(state)))))
        for name, value in masters.items():
            self.shards.put(name, "", value)
        if state is not None:
            self._restore_moments(state)

    def _keep_frozen(self) -> None:
        """Keep what does not train as it is: rounding to bfloat16 must not reach it."""
        self._names = {id(p): name for name, p in self.model.named_parameters()}
        self._frozen = {
            name: parameter.detach().clone()
            for name, parameter in self.model.named_parameters()
            if self.world.leads and not parameter.requires_grad
        }

    def _restore_moments(self, state: State) -> None:
        for name, parameter in self.parameters.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            for moment in MOMENTS:
                given = state.optimizer.get(f"{moment}/{name}")
                value = torch.zeros(shape) if given is None else given.clone()
                self.shards.put(name, moment, self.world.broadcast(value))

    def set_rate(self, factor: float) -> float:
        """Scale every learning rate and return the highest."""
        return set_learning_rate(self.optimizer, factor)

    def forward(
        self, batch: Batch, *, idle_pixels: Tensor | None, maps: list[Tensor] | None
    ) -> Tensor:
        """Return the mean losses over a micro-batch's learned positions and pictures."""
        inputs = model_inputs(batch, self.device, maps)
        inputs["idle_pixels"] = None if idle_pixels is None else idle_pixels.to(self.device)
        with self.world.watching():
            loss: Tensor = self.engine(inputs)
        return loss

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a loss's gradients; DeepSpeed reduces them over the processes when it sees fit."""
        self.engine.set_gradient_accumulation_boundary(last)
        with self.world.watching():
            self.engine.backward(loss * self.world.size, scale_wrt_gas=False)

    def step(self) -> float:
        """Clip, update, forget; return the norm before clipping."""
        with self.world.watching():
            if self.choice.zero == 0:
                norm = clip(self.parameters, self.section.gradient_clipping)
                if math.isfinite(norm):
                    self.engine.step()
                return norm
            self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def tensors(self) -> tuple[Tensors, Tensors]:
        """Return the weights that train (float32) and AdamW's state, whole, in process 0."""
        weights: Tensors = {}
        moments: Tensors = {}
        steps = torch.tensor(float(self.shards.steps()))
        with self.world.watching():
            for name in self.parameters:
                value = self.shards.take(name, "")
                if self.world.leads:
                    weights[name] = value.cpu()
                    moments[f"step/{name}"] = steps.clone()
                for moment in MOMENTS:
                    value = self.shards.take(name, moment)
                    if self.world.leads:
                        moments[f"{moment}/{name}"] = value.cpu()
        return weights, moments

    def finish(self) -> None:
        """Put plain float32 weights back into the model of process 0."""
        weights: Tensors = {}
        with self.world.watching():
            for name in self.parameters:
                value = self.shards.take(name, "")
                if self.world.leads:
                    weights[name] = value.cpu()
        self.engine.destroy()
        if self.world.leads:
            _replace_parameters(self.model, self._names, {**self._frozen, **weights})


def _steps_of(state: State | None) -> int:
    """Return how many updates a state's optimizer has done; 0 in processes that have none."""
    if state is None:
        return 0
    counts = [int(value) for key, value in state.optimizer.items() if key.startswith("step/")]
    return max(counts, default=0)


def _replace_parameters(
    model: nn.Module, names: Mapping[int, str], values: Mapping[str, Tensor]
) -> None:
    """Replace every parameter by a plain one; one that two modules share stays shared."""
    plain: dict[int, nn.Parameter] = {}
    for module in model.modules():
        fresh: dict[str, nn.Parameter | None] = {}
        for key, parameter in module._parameters.items():
            if parameter is None:
                fresh[key] = None
                continue
            if id(parameter) not in plain:
                value = values[names[id(parameter)]]
                plain[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
            fresh[key] = plain[id(parameter)]
        # Not in place: ZeRO-3 has put a dictionary of its own there, which gathers what it gives.
        module._parameters = fresh


def _initialize(owner: DeepSpeedEngine) -> Any:  # noqa: ANN401  (deepspeed ships no types)
    """Hand model and optimizer over to DeepSpeed."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", "0")
    engine, *_ = deepspeed.initialize(
        model=LossOnly(owner.model),
        optimizer=owner.optimizer,
        model_parameters=list(owner.parameters.values()),
        config=deepspeed_config(owner.section, owner.choice, owner.world.size),
    )
    return engine


def deepspeed_config(
    section: TrainSection, choice: DeepSpeed, num_processes: int
) -> dict[str, Any]:
    """Return DeepSpeed's configuration; what is not in it is decided elsewhere in this package."""
    on_device = torch.cuda.is_available()
    zero: dict[str, Any] = {
        "stage": choice.zero,
        "overlap_comm": on_device and choice.zero > 0,
        "contiguous_gradients": True,
    }
    if choice.offload == "cpu":
        place = {"device": "cpu", "pin_memory": on_device}
        zero["offload_optimizer"] = place
        if choice.zero == 3:
            zero["offload_param"] = place
    return {
        "train_micro_batch_size_per_gpu": section.batch.per_device,
        "gradient_accumulation_steps": section.batch.accumulation_for(num_processes),
        "gradient_clipping": section.gradient_clipping if choice.zero else 0.0,
        "bf16": {"enabled": section.precision == "bfloat16"},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }
