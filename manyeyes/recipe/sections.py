"""The recipe's sections: frozen, strict and closed, so that a wrong key or type fails by name.

The top-level keys are the pipeline. A stage receives ``seed``, ``model`` and its own section and
cannot see the rest, which is why a change of ``eval`` can never invalidate ``sft``. Alternatives
are unions discriminated on ``kind``. Nothing here knows about clusters, paths, users or secrets.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from manyeyes.errors import UserError
from manyeyes.recipe.base import Name, Positive, PositiveFloat, Section, Share
from manyeyes.recipe.fusions import FusionSection
from manyeyes.recipe.lora import Lora

MetricName = Literal["exact_match", "relaxed_accuracy", "anls", "pope_f1", "vqa_accuracy"]


class EncoderSection(Section):
    """One expert of the mixture; its position in the list is its place in the channel order."""

    name: Name
    """How the recipe, the checkpoints and the parameter names call this expert."""
    spec: str
    """Key of the encoder table (``manyeyes.model.encoders.registry.ENCODERS``)."""
    weights: str
    """``zoo:NAME``, ``package:NAME``, a Hugging Face id, a local folder, or ``random``."""
    grid: Positive | None = None
    """Side of this expert's map, where the fusion wants another than the common grid."""


class MlpProjector(Section):
    """LLaVA-1.5's projector: linear, GELU, linear."""

    kind: Literal["mlp2x_gelu"]


class LanguageModelSection(Section):
    """The causal language model and the conversation template it was tuned with."""

    weights: str
    template: Literal["plain_chat", "vicuna_v1", "smollm2"]


class ModelSection(Section):
    """What is trained: encoders, fusion, projector, language model."""

    encoders: tuple[EncoderSection, ...] = Field(min_length=1)
    grid: Positive
    """Side of the common feature grid; ``grid * grid`` visual tokens stand for one image."""
    normalization: Literal["per_encoder", "shared"]
    """``shared`` feeds CLIP-normalised pixels to every tower, as Eagle's released code does."""
    fusion: FusionSection = Field(discriminator="kind")
    projector: MlpProjector
    llm: LanguageModelSection
    max_length: Positive
    """Longest sequence in tokens, visual tokens included."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> ModelSection:
        names = [encoder.name for encoder in self.encoders]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"encoder names must differ, but {', '.join(twice)} is used twice")
        if self.grid * self.grid >= self.max_length:
            raise ValueError(
                f"grid {self.grid} makes {self.grid**2} visual tokens, which leaves no room for "
                f"text in max_length {self.max_length}; raise max_length or lower grid"
            )
        return self


class LearningRate(Section):
    """A learning rate for the parameters that match ``modules``; the first match wins."""

    modules: str
    learning_rate: PositiveFloat


def _number_or_auto(value: object) -> object:
    """Refuse what is neither, in one sentence and not in one for each possibility."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"got {value!r}; allowed are 'auto' or a whole number from 1")


class Batch(Section):
    """The global batch and how it is reached: per_device x accumulation x processes."""

    size: Positive
    per_device: Positive
    accumulation: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)]
    """Micro-batches a process adds up before a step; ``auto`` takes what the number of processes
    leaves, so that the same recipe trains, and resumes, on more or fewer of them."""

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
    offload: Literal["none", "cpu"]
    """Where optimizer state (at zero 3 also weights) lies between uses."""

    @model_validator(mode="after")
    def _has_something_to_offload(self) -> DeepSpeed:
        if self.offload != "none" and self.zero == 0:
            raise ValueError("zero 0 shares nothing out to offload; use zero 1, 2 or 3")
        return self


Engine = Annotated[SingleProcess | DeepSpeed, Field(discriminator="kind")]


class TrainSection(Section):
    """One training stage: what trains, for how long, on what."""

    train: tuple[str, ...] = Field(min_length=1)
    """Patterns over parameter names (``projector.*``); everything else is frozen."""
    steps: Positive
    batch: Batch
    learning_rate: PositiveFloat
    learning_rates: tuple[LearningRate, ...]
    """Rates for parts of the model; a parameter that matches none gets ``learning_rate``."""
    schedule: Annotated[Cosine | Constant, Field(discriminator="kind")]
    weight_decay: Annotated[float, Field(ge=0.0)]
    gradient_clipping: PositiveFloat
    precision: Literal["float32", "bfloat16"]
    checkpoint_every: Positive
    """Steps between resumable checkpoints."""
    sources: dict[str, PositiveFloat] = Field(min_length=1)
    """Sampling weight per task of the dataset; a task that is not listed is not used."""
    engine: Engine
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """``adamw_8bit`` holds the moments in eight bits, by bitsandbytes."""
    lora: Lora | None = None
    """Adapters that train beside what ``train`` names; what they sit on stays frozen."""
    recompute: Literal["none", "llm", "encoders", "all"] = "none"
    """Whose activations are computed again in the backward pass in place of being kept: a third
    more work, for where memory does not suffice."""
    feature_cache: Literal["auto", "on", "off"] = "auto"
    """Whether what frozen encoders make of a picture is kept on disk. ``auto`` does where it is
    measured to pay and to leave every bit as it is; see docs/training.md."""

    @model_validator(mode="after")
    def _extras_fit_engine(self) -> TrainSection:
        if isinstance(self.engine, DeepSpeed):
            if self.optimizer != "adamw":
                raise ValueError("optimizer adamw_8bit needs engine single; deepspeed has adamw")
            if self.lora is not None and self.lora.quantise != "none":
                raise ValueError("lora.quantise nf4 needs engine single; deepspeed has none")
        return self

    @model_validator(mode="after")
    def _precision_fits_engine(self) -> TrainSection:
        # DeepSpeed's wrapper there takes AdamW steps a fifth too short; see docs/training.md.
        wrong = isinstance(self.engine, DeepSpeed) and self.engine.zero == 0
        if wrong and self.precision == "bfloat16":
            raise ValueError(
                "engine deepspeed with zero 0 trains wrongly in bfloat16; "
                "use zero 1, 2 or 3, or precision float32"
            )
        return self


class PrealignSection(Section):
    """Per expert: train it with a projector of its own against the frozen language model.

    No experts at all skips the stage, as the systems do whose towers are aligned when published.
    """

    experts: dict[str, TrainSection]


class StarterData(Section):
    """The starter data, built offline from real sources (``manyeyes data starter``)."""

    kind: Literal["starter"]
    scale: PositiveFloat
    """1.0 makes about ten thousand samples."""
    image_size: Annotated[int, Field(ge=64, le=1024)]


class ImportedData(Section):
    """A dataset made by ``manyeyes data import``, found by name in the data folder."""

    kind: Literal["dataset"]
    name: Name


class ValidateSection(Section):
    """The data contract's thresholds; the gate says no beyond them."""

    max_quarantined: Share
    min_samples: Positive
    max_image_pixels: Positive
    max_turns: Positive
    max_characters: Positive
    licences: tuple[str, ...] = Field(min_length=1)


class EvalSection(Section):
    """Which tasks are scored, how, and on how much of the split."""

    split: Literal["val", "test"]
    tasks: dict[str, MetricName] = Field(min_length=1)
    max_new_tokens: Positive
    batch_size: Positive
    limit: Annotated[int, Field(ge=0)]
    """Samples per task; 0 takes all."""
    examples: Annotated[int, Field(ge=0)]
    """Examples per task shown in the report."""
    blind: bool
    """Also score the same model on a blank image."""


class GateSection(Section):
    """When a candidate may become champion."""

    max_regression: Annotated[float, Field(ge=0.0)]
    """Points the primary score may lose against the present champion."""
    min_gain_over_blind: float
    """Points every visual task must gain over the blank image."""


class RegisterSection(Section):
    """Under which name the model is registered and what it must prove."""

    model_name: Name
    primary: Literal["average"]
    gate: GateSection


class Recipe(Section):
    """One complete system. Attribute names differ from keys only where Python needs them free."""

    name: Name
    seed: Annotated[int, Field(ge=0)]
    model: ModelSection
    data: Annotated[StarterData | ImportedData, Field(discriminator="kind")]
    validation: ValidateSection = Field(alias="validate")
    prealign: PrealignSection
    pretrain: TrainSection
    sft: TrainSection
    evaluation: EvalSection = Field(alias="eval")
    registration: RegisterSection = Field(alias="register")

    @model_validator(mode="after")
    def _experts_are_encoders(self) -> Recipe:
        names = {encoder.name for encoder in self.model.encoders}
        given = set(self.prealign.experts)
        if given and given != names:
            missing, extra = sorted(names - given), sorted(given - names)
            parts = [f"missing {', '.join(missing)}"] if missing else []
            parts += [f"unknown {', '.join(extra)}"] if extra else []
            raise ValueError(
                f"prealign.experts must name exactly the encoders of the model (or none, to skip "
                f"prealign): {'; '.join(parts)}"
            )
        return self
