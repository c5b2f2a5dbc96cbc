"""What one GPU must hold while a stage trains.

Weights, gradients and AdamW's state follow from the engine (``training.zero``): in bfloat16 a
weight takes 2 bytes, its gradient 2, and its master copy and two moments 12; in float32 they take
4, 4 and 8. ZeRO divides among N processes: 1 the state, 2 also the gradients, 3 also the weights
(ZeRO, arXiv:1910.02054, section 3). Offload moves the state, with ZeRO 3 also the weights, to main
memory. Frozen weights have neither gradients nor state. What bitsandbytes holds in few bits takes
what ``few_bits`` says, and a teacher, which is no part of the model that DeepSpeed knows, is whole
in every process, whatever is shared out or offloaded.

To that comes the rest of the highest moment of forward and backward (``activations``): where
gradients are made once per step, by one backward pass on whole weights, the moment of most kept
tensors has few gradients yet, so it is less than what is kept. Then what DeepSpeed works with (its
buckets, or with ZeRO 3 the weights that are whole at a time: at most 1e9, its default), and a
reserve for the CUDA context, NCCL and fragmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manyeyes.plan.activations import Course

RESERVE = 2 * 2**30
BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces at a time (its default), in two buffers when it overlaps."""
LIVE = 1_000_000_000
"""Weights that ZeRO 3 keeps whole at a time (DeepSpeed's default)."""


@dataclass(frozen=True)
class Setting:
    """How a stage is spread over GPUs."""

    gpus: int
    zero: int
    offload: bool
    recompute: bool
    per_device: int

    def __str__(self) -> str:
        parts = [f"zero {self.zero}", f"{self.per_device} a GPU"]
        parts += ["offload to the CPU"] if self.offload else []
        parts += ["recomputation"] if self.recompute else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Need:
    """What does not depend on the setting."""

    parameters: int
    """Of the model, adapters included."""
    trainable: int
    float32: bool
    """Weights are float32 while training."""
    distributed: bool
    """DeepSpeed trains, so there are buckets."""
    batch: int
    """Samples of a step."""
    supervised: int
    """Learned positions of a sample."""
    piece: int
    """Learned positions whose logits exist at once, at most; see ``model.loss``."""
    course: Course
    """Of forward and backward, without recomputation."""
    recomputed: Course
    """The same with it."""
    teacher: int = 0
    """Parameters of a frozen teacher beside the model's own."""
    spared: int = 0
    """Bytes that weights in four bits take less."""
    eight_bit_state: int | None = None
    """Bytes of the optimizer's state where moments have eight bits."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the highest moment of a step holds beside the three above."""
    working: int
    reserve: int
    host: int
    """Bytes of main memory per process: float32 weights while loading, and what is offloaded."""

    @property
    def total(self) -> int:
        """All on the GPU."""
        return self.tensors + self.working + self.reserve

    @property
    def tensors(self) -> int:
        """What a step's tensors take, without what DeepSpeed and CUDA take beside them."""
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_of(need: Need, setting: Setting) -> Memory:
    """Return the bytes of a stage under a setting."""
    weight, gradient, state = (4, 4, 8) if need.float32 else (2, 2, 12)
    split = [setting.gpus if setting.zero >= level else 1 for level in (1, 2, 3)]
    whole_state = need.eight_bit_state
    optimizer = (state * need.trainable if whole_state is None else whole_state) // split[0]
    gradients = gradient * need.trainable // split[1]
    weights = weight * need.parameters // split[2] - need.spared
    host = 4 * (need.parameters + need.teacher)
    if setting.offload:
        host += optimizer + gradients
        optimizer = gradients = 0
        if setting.zero == 3:
            host += weights
            weights = 0
    weights += weight * need.teacher
    working = 0
    if need.distributed:
        live = min(LIVE, need.parameters) if setting.zero == 3 else 0
        working = weight * live + 2 * gradient * min(BUCKET, need.trainable)
    rest = _activations(need, setting)
    return Memory(weights, gradients, optimizer, rest, working, RESERVE, host)


def _activations(need: Need, setting: Setting) -> int:
    """Return what the highest moment holds beside weights, optimizer state and all gradients."""
    course = need.recomputed if setting.recompute else need.course
    positions = min(setting.per_device * need.supervised, need.piece)
    if need.distributed or need.batch > setting.gpus * setting.per_device:
        return course.peak(setting.per_device, positions, before=True)
    highest = course.peak(setting.per_device, positions, before=False)
    return max(0, highest - int(course.gradients[-1]))
