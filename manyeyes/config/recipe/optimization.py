"""How a training stage reaches its steps: batch, learning rates, schedule, engine.

Nothing here knows the model, so that :mod:`manyeyes.config.recipe.sections` can put both together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from manyeyes.config.recipe.base import (
    NotNegative,
    Pattern,
    Positive,
    PositiveFloat,
    Section,
    Share,
)
from manyeyes.errors import UserError


class LearningRate(Section):
    """A learning rate for the parameters that match ``modules``; the first match wins."""

    modules: Pattern
    learning_rate: PositiveFloat


def _number_or_auto(value: object) -> object:
    """Refuse what is neither, in one sentence and not in one for each possibility."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"got {value!r}; allowed are 'auto' or a whole number from 1")


def _workers_or_none(value: object) -> object:
    """Let the word ``auto`` say what a missing key says."""
    if value is None or value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"got {value!r}; allowed are 'auto' or a whole number from 0")


Workers = Annotated[
    int | None,
    BeforeValidator(_workers_or_none, json_schema_input_type=NotNegative | Literal["auto"] | None),
]
"""A number of worker processes; None for what suits the machine."""


class TokenBudget(Section):
    """Samples end to end in rows of at most so many tokens, in place of padded rows of one each."""

    tokens: Positive
    """Most tokens of a row, visual ones included: what the memory of a process holds."""


def _budget_or_none(value: object) -> object:
    """Let the word ``none`` say what a missing key says."""
    if value is None or value == "none":
        return None
    if isinstance(value, dict | TokenBudget):
        return value
    raise ValueError(f"got {value!r}; allowed are none or a section with the key tokens")


class Batch(Section):
    """The global batch and how it is reached: per_device x accumulation x processes."""

    size: Positive
    per_device: Positive = Field(default_factory=lambda known: known.get("size", 1))
    """Samples a process holds at once; absent: the whole batch."""
    accumulation: Annotated[
        int | Literal["auto"],
        BeforeValidator(_number_or_auto, json_schema_input_type=Positive | Literal["auto"]),
    ] = "auto"
    """Micro-batches a process adds up before a step; ``auto`` takes what the number of processes
    leaves, so that the same recipe trains, and resumes, on more or fewer of them. Absent: what one
    process needs with engine ``single``, else ``auto``."""
    packing: Annotated[
        TokenBudget | None,
        BeforeValidator(
            _budget_or_none, json_schema_input_type=TokenBudget | Literal["none"] | None
        ),
    ] = None
    """How a step's samples are laid out; which they are does not depend on it."""

    @model_validator(mode="after")
    def _divides(self) -> Batch:
        if self.accumulation == "auto":
            self._divides_alone()
            return self
        step = self.per_device * self.accumulation
        if self.size % step:
            down, up = self.size // step * step, (self.size // step + 1) * step
            valid = [str(size) for size in (down, up) if size]
            raise ValueError(
                f"size {self.size} is not a multiple of per_device x accumulation = {step}; "
                f"size {' or '.join(valid)} would be"
            )
        return self

    def _divides_alone(self) -> None:
        if self.size % self.per_device:
            down = self.size // self.per_device * self.per_device
            valid = [str(size) for size in (down, down + self.per_device) if size]
            raise ValueError(
                f"size {self.size} is not a multiple of per_device {self.per_device}; "
                f"size {' or '.join(valid)} would be"
            )

    def accumulation_for(self, num_processes: int) -> int:
        """Return how many micro-batches each process adds up before a step.

        Raises:
            UserError: per_device x accumulation x processes is not the global batch.
        """
        noun = "process" if num_processes == 1 else "processes"
        together = self.per_device * num_processes
        if self.accumulation == "auto":
            if self.size % together:
                down = self.size // together * together
                sizes = [str(size) for size in (down, down + together) if size]
                raise UserError(
                    f"batch: size {self.size} is not a multiple of per_device {self.per_device} x "
                    f"{num_processes} {noun} = {together}; size {' or '.join(sizes)} would be."
                )
            return self.size // together
        reached = together * self.accumulation
        if reached != self.size:
            fitting = [f"size {reached}"]
            if self.size % together == 0:
                fitting.append(f"accumulation {self.size // together}")
            right = self.size // (self.per_device * self.accumulation)
            fitting.append(f"{right} {'process' if right == 1 else 'processes'}")
            raise UserError(
                f"batch: per_device {self.per_device} x accumulation {self.accumulation} x "
                f"{num_processes} {noun} is {reached}, not size {self.size}; "
                f"{', '.join(fitting[:-1])} or {fitting[-1]} would fit."
            )
        return self.accumulation


class FixedRates(Section):
    """The learning rates are what the recipe says, whatever the batch."""

    kind: Literal["none"]


class SquareRootRates(Section):
    """Every learning rate times sqrt(batch size / base batch), Cambrian-1's rule.

    The rates of the recipe hold at ``base_batch``; another batch changes them by itself.
    """

    kind: Literal["sqrt"]
    base_batch: Positive


class Cosine(Section):
    """Linear warm-up, then a half cosine down to zero."""

    kind: Literal["cosine"]
    warmup: Share
    """Share of the steps spent warming up."""


class Constant(Section):
    """Linear warm-up, then a constant rate."""

    kind: Literal["constant"]
    warmup: Share


class SingleProcess(Section):
    """One process, plain PyTorch."""

    kind: Literal["single"]


class DeepSpeed(Section):
    """Any number of processes, started by torchrun, through DeepSpeed."""

    kind: Literal["deepspeed"]
    zero: Literal[0, 1, 2, 3]
    """What the processes share out: nothing, optimizer state, also gradients, also weights."""
    offload: Literal["none", "cpu"] = "none"
    """Where optimizer state (at zero 3 also weights) lies between uses."""

    @model_validator(mode="after")
    def _has_something_to_offload(self) -> DeepSpeed:
        if self.offload != "none" and self.zero == 0:
            raise ValueError("zero 0 shares nothing out to offload; use zero 1, 2 or 3")
        return self


Engine = Annotated[SingleProcess | DeepSpeed, Field(discriminator="kind")]
