"""Whole tensors in and out of what ZeRO has shared out: masters and AdamW's moments by name.

DeepSpeed writes its own checkpoints per process, which another number of processes cannot read
without a conversion. Reading and writing whole tensors instead gives every engine the same state
on disk; what is paid is that process 0 holds them all while it writes.

An *owner* is a tensor that the optimizer updates: a parameter itself (zero 0), or a flat one that
holds this process's part of many (zero 1 to 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state beside its count of steps."""


class Shards(Protocol):
    """Access to masters (key ``""``) and moments (key from ``MOMENTS``) by parameter name."""

    def prepare(self, steps: int) -> None:
        """Give every owner an AdamW state of zeros, ``steps`` steps old."""

    def steps(self) -> int:
        """Return how many updates the optimizer has done."""

    def put(self, name: str, key: str, value: Tensor) -> None:
        """Write this process's part of a whole tensor, the same in all processes."""

    def take(self, name: str, key: str) -> Tensor:
        """Return a whole tensor. Collective."""


def shards_of(
    engine: Any,  # noqa: ANN401  (deepspeed ships no types)
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
) -> Shards:
    """Return the access that fits what DeepSpeed shared out."""
    match int(engine.zero_optimization_stage()):
        case 0:
            return Unshared(list(parameters.values()), optimizer, parameters)
        case 1 | 2:
            owners = engine.optimizer.single_partition_of_fp32_groups
            return Fragments(owners, optimizer, parameters, engine.optimizer)
        case _:
            owners = engine.optimizer.fp32_partitioned_groups_flat
            return Partitions(owners, optimizer, parameters, engine.optimizer)


class _Owned:
    """What all have in common: the optimizer's state of the owners."""

    def __init__(
        self,
        owners: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        zero: Any = None,  # noqa: ANN401  (deepspeed ships no types)
    ) -> None:
        self.owners = owners
        self.optimizer = optimizer
        self.parameters = parameters
        self.zero = zero

    def prepare(self, steps: int) -> None:
        """Give every owner an AdamW state of zeros."""
        for owner in self.owners:
            self.optimizer.state[owner] = {
                "step": torch.tensor(float(steps), device=owner.device),
                **{moment: torch.zeros_like(owner.detach()) for moment in MOMENTS},
            }

    def steps(self) -> int:
        """Return how many updates the optimizer has done."""
        return int(self.optimizer.state[self.owners[0]]["step"])


class Unshared(_Owned):
    """Zero 0: every process has everything."""

    def put(self, name: str, key: str, value: Tensor) -> None:
        """Write a whole tensor."""
        with torch.no_grad():
            self._find(name, key).copy_(value)

    def take(self, name: str, key: str) -> Tensor:
        """Return a whole tensor."""
        return self._find(name, key).clone()

    def _find(self, name: str, key: str) -> Tensor:
        parameter = self.parameters[name]
        found: Tensor = self.optimizer.state[parameter][key] if key else parameter.detach()
        return found


class Fragments(_Owned):
    """Zero 1 and 2: each process owns a stretch of all parameters laid end to end."""

    def prepare(self, steps: int) -> None:
        """Give every owner an AdamW state, and tell each parameter where in it its part lies."""
        super().prepare(steps)
        self.zero._lazy_init_hp_params_optimizer_state()

    def put(self, name: str, key: str, value: Tensor) -> None:
        """Write the stretch of a whole tensor that is this process's."""
        parameter: Any = self.parameters[name]
        parameter.set_full_hp_param(value.to(parameter.device), key or None)

    def take(self, name: str, key: str) -> Tensor:
        """Return a whole tensor."""
        parameter: Any = self.parameters[name]
        whole: Tensor = parameter.get_full_hp_param(key or None)
        return whole


class Partitions(_Owned):
    """Zero 3: each process owns an equal part of every parameter, the last one padded."""

    def put(self, name: str, key: str, value: Tensor) -> None:
        """Write the part of a whole tensor that is this process's."""
        parameter: Any = self.parameters[name]
        size = parameter.ds_tensor.numel()
        begin = min(size * torch.distributed.get_rank(), value.numel())
        part = value.flatten()[begin : begin + size]
        padded = torch.nn.functional.pad(part, (0, size - part.numel()))
        self.zero.set_local_hp_param(padded, parameter, key or None)

    def take(self, name: str, key: str) -> Tensor:
        """Return a whole tensor."""
        whole: Tensor = self.zero.get_full_hp_param(self.parameters[name], key or None)
        return whole
