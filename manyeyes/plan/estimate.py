"""All of it for one recipe and one fleet: parameters, operations, memory, time, bytes, cost.

Time is operations / (GPUs x peak x MFU). MFU counts needed operations only, as ``training.flops``
does, so the stated one must already contain what padding, recomputation and waiting cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.errors import UserError
from manyeyes.plan.few_bits import bytes_spared, eight_bit_bytes
from manyeyes.plan.fitting import nearest
from manyeyes.plan.lengths import Lengths, absent_dataset, dataset_of, in_steps, lengths_of
from manyeyes.plan.memory import Memory, Need, Setting, memory_of
from manyeyes.plan.meta_step import SampleShape, follow_step, most_positions
from manyeyes.plan.stages import (
    Precision,
    Stage,
    build_on_meta,
    build_to_train,
    configs_of,
    training_stages,
)
from manyeyes.training.adapters import is_adapter
from manyeyes.training.cost import cost_of, trained_parts
from manyeyes.training.flops import ModelCost, Trained, step_flops

if TYPE_CHECKING:
    from manyeyes.config.recipe import ModelSection, Recipe
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.plan.gpus import Fleet

STATE_BYTES = 12
"""Of a resumable state per trained parameter: float32 weight and two moments."""
MODEL_BYTES = 4
"""Of a finished checkpoint per parameter: float32."""
TEACHER = "alignment teacher"
"""As ``describe`` calls it."""


@dataclass(frozen=True)
class Part:
    """One module of a stage's model."""

    name: str
    parameters: int
    trainable: int


@dataclass(frozen=True)
class StagePlan:
    """What one stage needs."""

    name: str
    parts: tuple[Part, ...]
    visual_tokens: int
    lengths: Lengths
    flops_by_row: tuple[float, ...]
    """Needed operations of one sample of each row of ``lengths``."""
    samples: int
    """Of the whole stage: steps x batch."""
    steps: int
    setting: Setting
    """As the recipe says, without recomputation."""
    table: tuple[tuple[Setting, Memory], ...]
    """Memory for ZeRO 0 to 3, with and without recomputation and offload."""
    fit: Setting | None
    """The nearest setting that fits; None where none was found."""
    step_seconds: float
    need: Need

    @property
    def parameters(self) -> int:
        """All of the model, and its teacher's."""
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        """What trains."""
        return sum(part.trainable for part in self.parts)

    @property
    def flops_per_sample(self) -> float:
        """Needed operations of the average sample."""
        pairs = zip(self.lengths.rows, self.flops_by_row, strict=True)
        return sum(row.share * flops for row, flops in pairs)

    @property
    def flops(self) -> float:
        """Of the whole stage."""
        return self.flops_per_sample * self.samples

    @property
    def hours(self) -> float:
        """Of the whole stage."""
        return self.step_seconds * self.steps / 3600.0

    @property
    def fits(self) -> bool:
        """Whether the recipe's own setting fits, with recomputation if need be."""
        return self.fit in (self.setting, replace(self.setting, recompute=True))

    @property
    def state_bytes(self) -> int:
        """Of one resumable state; two are kept."""
        if self.need.eight_bit_state is None:
            return STATE_BYTES * self.trainable
        return MODEL_BYTES * self.trainable + self.need.eight_bit_state

    @property
    def checkpoint_bytes(self) -> int:
        """Of the finished checkpoint, which holds no teacher; an adapter lies beside the rest."""
        return MODEL_BYTES * (self.parameters - self.need.teacher)


@dataclass(frozen=True)
class Plan:
    """What a recipe needs."""

    recipe: str
    fleet: Fleet
    mfu: float
    price: float | None
    """Of one GPU for an hour."""
    stages: tuple[StagePlan, ...]

    @property
    def hours(self) -> float:
        """Of all stages, one after the other."""
        return sum(stage.hours for stage in self.stages)

    @property
    def cost(self) -> float | None:
        """At the stated price."""
        return None if self.price is None else self.hours * self.fleet.count * self.price

    @property
    def fits(self) -> bool:
        """Whether every stage fits as the recipe has it."""
        return all(stage.fits for stage in self.stages)


def make_plan(
    recipe: Recipe,
    fleet: Fleet,
    *,
    mfu: float = 0.4,
    price: float | None = None,
    dataset: Path | None = None,
) -> Plan:
    """Work out what a recipe needs on a fleet.

    Args:
        recipe: checked.
        fleet: the GPUs.
        mfu: model FLOPs utilisation to reckon with, 0 to 1.
        price: of one GPU for an hour, in any currency.
        dataset: a finished one whose lengths are used; by default the recipe's, where it is here.

    Raises:
        UserError: the batch does not divide among the GPUs, or the recipe is wrong.
    """
    if not 0.0 < mfu <= 1.0:
        raise UserError(f"--mfu {mfu:g}: write a share above 0 and up to 1, like 0.4.")
    folder = dataset_of(recipe, dataset)
    missing = absent_dataset(recipe) if folder is None else ""
    stages = tuple(
        _plan_stage(stage, fleet, mfu, folder, missing) for stage in training_stages(recipe)
    )
    return Plan(recipe.name, fleet, mfu, price, stages)


def _plan_stage(
    stage: Stage, fleet: Fleet, mfu: float, dataset: Path | None, missing: str
) -> StagePlan:
    section = in_steps(stage.section, dataset)
    model = build_to_train(stage)
    trained = trained_parts(model)
    plain = section.lora is None
    cost = _cost(stage.model, stage.weight_type) if plain else cost_of(model, _canvas(model))
    lengths = lengths_of(stage, cost.num_visual_tokens, dataset, missing)
    setting = _setting(stage, fleet)
    need = need_of(stage, model, lengths)
    flops = tuple(
        row_flops(cost, trained, row.length, row.supervised, row.images) for row in lengths.rows
    )
    average = sum(row.share * each for row, each in zip(lengths.rows, flops, strict=True))
    speed = setting.gpus * fleet.gpu.peak_flops * mfu
    return StagePlan(
        name=stage.name,
        parts=_parts(model),
        visual_tokens=cost.num_visual_tokens,
        lengths=lengths,
        flops_by_row=flops,
        samples=section.num_steps * section.batch.size,
        steps=section.num_steps,
        setting=setting,
        table=tuple((each, memory_of(need, each)) for each in _table(need, setting)),
        fit=nearest(need, setting, fleet.gpu.memory, section.batch.size),
        step_seconds=average * section.batch.size / speed,
        need=need,
    )


def row_flops(
    cost: ModelCost, trained: Trained, length: int, supervised: int, images: float
) -> float:
    """Return the needed operations of one sample; ``images`` may be an average."""
    blind = step_flops(cost, trained, [length], num_images=0, num_supervised=supervised)
    seen = step_flops(cost, trained, [length], num_images=1, num_supervised=supervised)
    return blind + images * (seen - blind)


def _setting(stage: Stage, fleet: Fleet) -> Setting:
    """Return the recipe's own setting on a fleet.

    Raises:
        UserError: the engine or the batch does not go with so many GPUs.
    """
    section, engine = stage.section, stage.section.engine
    if engine.kind == "single":
        if fleet.count > 1:
            raise UserError(
                f"{stage.name}: engine single trains on one GPU, not on {fleet.count}; plan it for "
                f"1x{fleet.name}, or write kind: deepspeed."
            )
        return Setting(1, 0, offload=False, recompute=False, per_device=section.batch.per_device)
    try:
        section.batch.accumulation_for(fleet.count)
    except UserError as error:
        raise UserError(f"{stage.name}: {error}") from None
    return Setting(
        fleet.count, engine.zero, engine.offload == "cpu", False, section.batch.per_device
    )


def _table(need: Need, setting: Setting) -> list[Setting]:
    zeros = range(4) if need.distributed else range(1)
    return [
        Setting(setting.gpus, zero, offload, recompute, setting.per_device)
        for zero in zeros
        for offload in ((False, True) if zero else (False,))
        for recompute in (False, True)
    ]


def _parts(model: VisionLanguageModel) -> tuple[Part, ...]:
    """Count by encoder, then fusion, projector, language model, EVE's two, and adapters."""
    counts: dict[str, list[int]] = {module.name: [0, 0] for module in model.describe()}
    if model.alignment is not None:  # in no module, so that named_parameters does not find it
        counts[TEACHER][0] = teacher_parameters(model)
    for name, parameter in model.named_parameters():
        part = next((key for key in counts if name.startswith(f"{key}.")), name.split(".")[0])
        both = counts.setdefault("adapters" if is_adapter(name) else part, [0, 0])
        both[0] += parameter.numel()
        both[1] += parameter.numel() if parameter.requires_grad else 0
    return tuple(Part(name, *both) for name, both in counts.items())


def teacher_parameters(model: VisionLanguageModel) -> int:
    """Return how many parameters the frozen teacher has; 0 without one."""
    if model.alignment is None:
        return 0
    return sum(parameter.numel() for parameter in model.alignment.teacher.parameters())


def _cost(model: ModelSection, precision: Precision) -> ModelCost:
    return _kept_cost(model, precision, configs_of(model))


@lru_cache(maxsize=16)
def _kept_cost(model: ModelSection, precision: Precision, _configs: tuple[str, ...]) -> ModelCost:
    built = build_on_meta(model, precision)
    return cost_of(built, _canvas(built))


def _canvas(model: VisionLanguageModel) -> int:
    return max(expert.spec.image_size for expert in model.experts.values())


def shape_of(model: VisionLanguageModel, lengths: Lengths) -> SampleShape:
    """Return the largest sample of a stage, with the pictures of an average one that has any."""
    images = max((row.images for row in lengths.rows), default=0.0)
    return SampleShape(lengths.longest, max(1, round(images)), _canvas(model))


def need_of(stage: Stage, model: VisionLanguageModel, lengths: Lengths) -> Need:
    """Find out what does not depend on how training is spread.

    Args:
        stage: of a recipe.
        model: the stage's, on the meta device; what trains is marked.
        lengths: of its samples.
    """
    parameters, section = list(model.parameters()), stage.section
    trainable = [parameter.numel() for parameter in parameters if parameter.requires_grad]
    small = section.optimizer == "adamw_8bit"
    shape = shape_of(model, lengths)
    again = "all" if section.recompute == "none" else section.recompute
    return Need(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(trainable),
        float32=stage.weight_type == "float32",
        distributed=section.engine.kind == "deepspeed",
        batch=section.batch.size,
        supervised=max(row.supervised for row in lengths.rows),
        piece=most_positions(int(model.llm.config.vocab_size)),
        course=follow_step(model, shape, recompute="none"),
        recomputed=follow_step(model, shape, recompute=again),
        teacher=teacher_parameters(model),
        spared=bytes_spared(model),
        eight_bit_state=sum(map(eight_bit_bytes, trainable)) if small else None,
    )
