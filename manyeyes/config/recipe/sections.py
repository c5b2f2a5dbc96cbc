"""The recipe's sections: frozen, strict and closed, so that a wrong key or type fails by name.

The top-level keys are the pipeline. A stage receives ``seed``, ``model`` and its own section and
cannot see the rest, which is why a change of ``eval`` can never invalidate ``sft``. Alternatives
are unions discriminated on ``kind``. Nothing here knows about clusters, paths, users or secrets.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from manyeyes.config.recipe.base import (
    Imported,
    LanguageWeights,
    Licence,
    Name,
    NotNegative,
    Pattern,
    Positive,
    PositiveFloat,
    Section,
    Share,
    Task,
    Weight,
    Weights,
)
from manyeyes.config.recipe.fusions import ChannelConcat, FusionSection, PatchEmbedding
from manyeyes.config.recipe.lora import Lora
from manyeyes.config.recipe.optimization import (
    Batch,
    Constant,
    Cosine,
    DeepSpeed,
    Engine,
    FixedRates,
    LearningRate,
    SingleProcess,
    SquareRootRates,
    Workers,
)
from manyeyes.errors import UserError


def _is_none(value: object) -> bool:
    return value is None


class EncoderSection(Section):
    """One expert of the mixture; its position in the list is its place in the channel order."""

    name: Name
    """How the recipe, the checkpoints and the parameter names call this expert."""
    spec: str
    """Key of the encoder table (``manyeyes.model.encoders.registry.ENCODERS``)."""
    weights: Weights
    """``zoo:NAME``, ``package:NAME``, a Hugging Face id, a local folder, or ``random``."""
    grid: Positive | None = None
    """Side of this expert's map, where the fusion wants another than the common grid."""
    released: Positive | None = None
    """Side in pixels at which the released weights ran, where it is not the one of ``spec``
    (Eagle's CLIP: 336 instead of 448; its features are then resized to the grid)."""


class AlignmentSection(Section):
    """EVE's patch aligning layer: hidden states at a picture are compared with a frozen teacher.

    It exists while training, and is no part of the model that is registered.
    """

    teacher: EncoderSection
    stride: Positive
    """Every how many decoder layers a hidden state is compared, counted back from the last one."""
    heads: Positive
    weight: Weight
    """Of its loss beside the language model's."""


class MlpProjector(Section):
    """LLaVA-1.5's projector: linear, GELU, linear."""

    kind: Literal["mlp2x_gelu"] = "mlp2x_gelu"
    weights: Imported | None = None
    """Folder of ``manyeyes import-weights`` with a trained projector and fusion, from which
    ``pretrain`` starts; otherwise they start at random."""


class LanguageModelSection(Section):
    """The causal language model and the conversation template it was tuned with."""

    weights: LanguageWeights
    template: str
    """Row of the templates' table (``manyeyes.data.loading.templates.TEMPLATES``)."""
    router_loss: Annotated[float, Field(ge=0.0)] | None = None
    """Weight of a mixture of experts' load balancing loss; absent: as the model was published."""


class ModelSection(Section):
    """What is trained: encoders, fusion, projector, language model."""

    encoders: tuple[EncoderSection, ...] = Field(min_length=1)
    grid: Positive
    """Side of the common feature grid; ``grid * grid`` visual tokens stand for one image."""
    normalization: Literal["per_encoder", "shared"] = "per_encoder"
    """``shared`` feeds CLIP-normalised pixels to every tower, as Eagle's released code does."""
    fusion: FusionSection = Field(discriminator="kind")
    projector: MlpProjector = MlpProjector()
    llm: LanguageModelSection
    max_length: Positive
    """Longest sequence in tokens, visual tokens included."""
    alignment: AlignmentSection | None = None

    def alone(self, expert: str) -> ModelSection:
        """Return the model of one expert that ``prealign`` trains.

        Whatever the mixture's fusion, one expert has nothing to be fused with (but EVE's fusion is
        a part of its expert); and it is looked at on the common grid, whatever grid a fusion wants
        it on.
        """
        single = self.fusion
        if not isinstance(single, PatchEmbedding):
            single = ChannelConcat(kind="channel_concat")
        encoders = tuple(
            encoder.model_copy(update={"grid": None})
            for encoder in self.encoders
            if encoder.name == expert
        )
        return self.model_copy(update={"encoders": encoders, "fusion": single})

    @model_validator(mode="after")
    def _alignment_has_patches(self) -> ModelSection:
        if self.alignment is not None and not isinstance(self.fusion, PatchEmbedding):
            raise ValueError(
                f"alignment compares patches with a teacher's, so it needs fusion kind "
                f"patch_embedding, not {self.fusion.kind}; remove alignment or change the fusion"
            )
        return self

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


class TrainSection(Section):
    """One training stage: what trains, for how long, on what."""

    train: tuple[Pattern, ...] = Field(min_length=1)
    """Patterns over parameter names (``projector.*``); everything else is frozen."""
    steps: Positive | None = None
    """How long; or ``epochs``."""
    epochs: PositiveFloat | None = Field(default=None, exclude_if=_is_none)
    """In place of ``steps``: how many times as many samples are drawn as the dataset has to train
    on in ``sources``. The key of the stage holds this number and the dataset's digest, and the
    steps follow from both once the dataset is there."""
    batch: Batch
    learning_rate: PositiveFloat
    learning_rates: tuple[LearningRate, ...] = ()
    """Rates for parts of the model; a parameter that matches none gets ``learning_rate``."""
    schedule: Annotated[Cosine | Constant, Field(discriminator="kind")] = Cosine(
        kind="cosine", warmup=0.03
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    gradient_clipping: PositiveFloat = 1.0
    precision: Literal["float32", "bfloat16"]
    checkpoint_every: Positive
    """Steps between resumable checkpoints."""
    sources: dict[Task, Weight] = Field(min_length=1)
    """Sampling weight per task of the dataset; a task that is not listed is not used."""
    engine: Engine = SingleProcess(kind="single")
    template: str | None = None
    """How this stage writes conversations; absent: as ``model.llm.template`` says."""
    model: ModelSection | None = None
    """What this stage trains where that is not the recipe's model, like a low resolution first."""
    batch_rule: Annotated[FixedRates | SquareRootRates, Field(discriminator="kind")] | None = None
    """How the learning rates follow the batch; absent: not at all."""
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

    workers: Workers = None
    """Processes that decode pictures beside each process of the training; 0 decodes in a thread.
    ``auto``, or absent: half of the cores, and 0 where there are few."""
    max_quarantined: Share | None = None
    """Share of the samples that may turn out, while training, to have a picture that cannot be
    used; absent: 0.01."""
    inherit: Literal["experts", "whole"] = "experts"
    """Of ``pretrain``: what it takes from ``prealign``. Each expert's tower, with a new projector
    for all of them (Eagle), or the whole model of the one expert there is (EVE)."""

    @property
    def num_steps(self) -> int:
        """How many steps the stage has.

        Raises:
            UserError: it is said in epochs, and of how many samples nobody knows here.
        """
        if self.steps is None:
            raise UserError(
                f"How many steps epochs {self.epochs:g} are is known where the dataset is; write "
                "steps."
            )
        return self.steps

    def on_samples(self, number: int) -> TrainSection:
        """Return the section in steps, for a dataset with so many samples to train on."""
        if self.epochs is None:
            return self
        steps = max(1, math.ceil(self.epochs * number / self.batch.size))
        return self.model_copy(update={"steps": steps, "epochs": None})

    def rate_factor(self) -> float:
        """Return what the batch rule makes of every learning rate."""
        if isinstance(self.batch_rule, SquareRootRates):
            return float((self.batch.size / self.batch_rule.base_batch) ** 0.5)
        return 1.0

    @model_validator(mode="after")
    def _has_an_end(self) -> TrainSection:
        if self.steps is None and self.epochs is None:
            raise ValueError("one of the keys steps and epochs is required")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                "steps and epochs both say how long; remove one (write null where a recipe that is "
                "extended says it)"
            )
        return self

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
    A recipe writes what all experts share once, under ``all``, and under ``experts`` what is
    different for one (``resolve``).
    """

    file_keys: ClassVar[tuple[str, ...]] = ("all",)

    experts: dict[str, TrainSection] = Field(default_factory=dict)


class StarterData(Section):
    """The starter data, built offline from real sources (``manyeyes data starter``)."""

    kind: Literal["starter"]
    version: ClassVar[int] = 1
    """Rises when the same settings give another dataset."""
    scale: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    """1.0 makes about ten thousand samples."""
    image_size: Annotated[int, Field(ge=64, le=1024)] = 128


class ImportedData(Section):
    """A dataset made by ``manyeyes data import``, found by name in the data folder."""

    kind: Literal["dataset"]
    version: ClassVar[int] = 1
    """Rises when the same settings give another dataset."""
    name: Name


class ValidateSection(Section):
    """The data contract's thresholds; the gate says no beyond them."""

    max_quarantined: Share = 0.01
    min_samples: Positive
    max_image_pixels: Positive = 64_000_000
    max_turns: Positive = 400
    max_characters: Positive = 100_000
    licences: tuple[Licence, ...] = Field(min_length=1)


class EvalSection(Section):
    """Which tasks are scored, how, and on how much of the split."""

    split: Literal["val", "test"] = "test"
    tasks: dict[Task, str] = Field(min_length=1)
    """Task of the dataset to its metric, a row of ``manyeyes.evaluation.metrics.METRICS``."""
    max_new_tokens: Positive
    batch_size: Positive = 16
    limit: NotNegative = 0
    """Samples per task; 0 takes all."""
    examples: NotNegative = 8
    """Examples per task shown in the report."""
    blind: bool = True
    """Also score the same model on a blank image."""
    too_long: Literal["leave_out"] | None = None
    """What becomes of questions longer than ``model.max_length``. ``leave_out`` scores the others
    and counts these; absent: they are an error, told before the first training."""


class GateSection(Section):
    """When a candidate may become champion."""

    max_regression: Annotated[float, Field(ge=0.0)] = 1.0
    """Points the primary score may lose against the present champion, on the same questions."""
    min_gain: Share | None = None
    """Share of the way from a task's floor (the better of the blank image and the best constant
    answer) to its highest score that every task must reach; absent, no gain is asked for."""
    max_empty: Share = 0.5
    """Share of a task's answers that may be empty."""
    max_equal: Share = 0.95
    """Share of a task's answers that may be one and the same, where the labels differ more."""


class RegisterSection(Section):
    """Under which name the model is registered and what it must prove."""

    model_name: Name
    """Absent in a file: the name of the recipe."""
    primary: Literal["average"] = "average"
    gate: GateSection = GateSection()


class Recipe(Section):
    """One complete system. Attribute names differ from keys only where Python needs them free."""

    file_keys: ClassVar[tuple[str, ...]] = ("extends",)

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    model: ModelSection
    data: Annotated[StarterData | ImportedData, Field(discriminator="kind")]
    validation: ValidateSection = Field(alias="validate")
    prealign: PrealignSection
    pretrain: TrainSection
    sft: TrainSection
    evaluation: EvalSection = Field(alias="eval")
    registration: RegisterSection = Field(alias="register")

    def stage_model(self, section: TrainSection) -> ModelSection:
        """Return what a training stage trains, its template included."""
        model = section.model or self.model
        if section.template is None:
            return model
        return model.model_copy(
            update={"llm": model.llm.model_copy(update={"template": section.template})}
        )

    @property
    def final_model(self) -> ModelSection:
        """What the last training stage makes: this is scored, registered and talked to."""
        return self.stage_model(self.sft)

    @property
    def trainings(self) -> dict[str, TrainSection]:
        """The section of every training, by the key under which it stands in the recipe."""
        experts = self.prealign.experts.items()
        return {
            **{f"prealign.experts.{name}": section for name, section in experts},
            "pretrain": self.pretrain,
            "sft": self.sft,
        }

    @model_validator(mode="after")
    def _experts_are_encoders(self) -> Recipe:
        names = _names(self.stage_model(self.pretrain))
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

    @model_validator(mode="after")
    def _stages_continue_each_other(self) -> Recipe:
        for stage, section in self.trainings.items():
            if section.model is None:
                continue
            if _names(section.model) != _names(self.model):
                raise ValueError(
                    f"{stage}.model must have the encoders of the recipe's model, "
                    f"{', '.join(sorted(_names(self.model)))}, because the stages hand on weights "
                    f"by name, but it has {', '.join(sorted(_names(section.model)))}"
                )
            if section.model.llm.weights != self.model.llm.weights:
                raise ValueError(
                    f"{stage}.model.llm.weights is {section.model.llm.weights!r}, but the stages "
                    f"train one language model, {self.model.llm.weights!r}"
                )
        return self

    @model_validator(mode="after")
    def _longest_fits_a_pack(self) -> Recipe:
        for stage, section in self.trainings.items():
            given, longest = section.batch.packing, self.stage_model(section).max_length
            if given is not None and given.tokens < longest:
                raise ValueError(
                    f"{stage}.batch.packing.tokens {given.tokens} is less than model.max_length; "
                    f"write {longest} or more, or the longest sample fits in no pack"
                )
        return self

    @model_validator(mode="after")
    def _a_gain_is_measured(self) -> Recipe:
        if self.registration.gate.min_gain is not None and not self.evaluation.blind:
            raise ValueError(
                "register.gate.min_gain asks for a gain over the blank image, which eval.blind "
                "false does not measure; write eval.blind true, or remove min_gain"
            )
        return self

    @model_validator(mode="after")
    def _whole_is_of_one(self) -> Recipe:
        others = {**self.prealign.experts, "sft": self.sft}
        for name, section in others.items():
            if section.inherit != "experts":
                raise ValueError(f"inherit is a key of pretrain alone; remove it from {name}")
        if self.pretrain.inherit == "whole" and len(self.prealign.experts) != 1:
            raise ValueError(
                "pretrain.inherit whole continues the one model that prealign makes, but "
                f"prealign.experts has {len(self.prealign.experts)}; name one, or write experts"
            )
        return self


def _names(model: ModelSection) -> set[str]:
    return {encoder.name for encoder in model.encoders}
