"""The training stages of a recipe and their models, built on the meta device.

A model on the meta device has every module, name and shape of the real one and no memory behind
them, so a 34 B model takes a second and a few megabytes, and what is counted on it is true.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from manyeyes.config.recipe import ModelSection, Recipe, TrainSection
from manyeyes.model.weights.hub import cached_revision, is_hub_name
from manyeyes.plan.few_bits import hold_in_four_bits
from manyeyes.steps import Task
from manyeyes.training.adapters import attach
from manyeyes.training.freeze import apply_trainable, require_match

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyeyes.model.vlm import VisionLanguageModel

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Stage:
    """One training stage: what is built and what of it trains."""

    task: Task
    model: ModelSection
    section: TrainSection

    @property
    def weight_type(self) -> Precision:
        """Type of the weights while training; one process keeps float32 and casts as it goes."""
        return "float32" if self.section.engine.kind == "single" else self.section.precision

    @property
    def name(self) -> str:
        """``prealign:EXPERT``, ``pretrain`` or ``sft``."""
        return self.task.label


def training_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """Return what a recipe trains, in order; each stage with its own model."""
    alone = tuple(
        Stage(Task("prealign", name), recipe.stage_model(section).alone(name), section)
        for name, section in recipe.prealign.experts.items()
    )
    joined = tuple(
        Stage(Task(name), recipe.stage_model(section), section)
        for name, section in (("pretrain", recipe.pretrain), ("sft", recipe.sft))
    )
    return alone + joined


def build_on_meta(model: ModelSection, precision: Precision) -> VisionLanguageModel:
    """Build a model without memory; whoever changes its flags shares them with the next caller.

    Args:
        model: what to build.
        precision: type of its weights.

    Raises:
        UserError: an unknown spec, a fusion that cannot join these experts, or a language model
            whose config is neither known nor reachable.
    """
    return _kept(model, precision, configs_of(model))


def configs_of(model: ModelSection) -> tuple[str, ...]:
    """Return the files that tell how a model is built, with size and time; of the hub the commit.

    What is kept of a model within a process is kept for these: the same words name another model
    in another working directory, or after its folder was filled anew.
    """
    named = [model.llm.weights, *(encoder.weights for encoder in model.encoders)]
    if model.alignment is not None:
        named.append(model.alignment.teacher.weights)
    found = []
    for name in named:
        if is_hub_name(name):
            found.append(f"{name} {cached_revision(name)}")
        for path in (Path(name, "config.json"), *sorted(Path(name).glob("*.gguf"))):
            with suppress(OSError):
                state = path.stat()
                found.append(f"{path.absolute()} {state.st_size} {state.st_mtime_ns}")
    return tuple(found)


@lru_cache(maxsize=8)
def _kept(
    model: ModelSection, precision: Precision, _configs: tuple[str, ...]
) -> VisionLanguageModel:
    return _build(model, precision)


def _build(model: ModelSection, precision: Precision) -> VisionLanguageModel:
    from manyeyes.model.vlm import VisionLanguageModel

    with torch.device("meta"):
        vlm = VisionLanguageModel.from_recipe(model, seed=0, load=False)
    nn.Module.to(vlm, getattr(torch, precision))  # transformers' own wraps the types away
    return vlm


def build_to_train(stage: Stage) -> VisionLanguageModel:
    """Build a stage's model without memory as it trains: flags set, adapters in it.

    Raises:
        UserError: as ``build_on_meta``; a pattern of ``train`` or ``lora`` fits nothing.
    """
    section = stage.section
    if section.lora is None:
        model = build_on_meta(stage.model, stage.weight_type)
        apply_trainable(model, section.train)
        return model
    # Of its own, not the kept one: adapters change its modules.
    model = _build(stage.model, stage.weight_type)
    apply_trainable(model, section.train)
    plain = section.model_copy(
        update={"lora": section.lora.model_copy(update={"quantise": "none"})}
    )
    with torch.device("meta"):
        adapters = attach(model, plain, seed=0)
    if adapters is not None and section.lora.quantise == "nf4":
        hold_in_four_bits(model, adapters.names)
    nn.Module.to(model, getattr(torch, stage.weight_type))
    return model


def trainable_names(model: VisionLanguageModel, section: TrainSection) -> list[str]:
    """Return the names of the parameters that a stage trains.

    Raises:
        UserError: a pattern of ``train`` matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in section.train:
        require_match(pattern, names, where="train")
    return [name for name in names if _first(name, section.train) is not None]


def learning_rates(names: Sequence[str], section: TrainSection) -> dict[str, float]:
    """Return the highest rate of each part, by the pattern that decided it, batch rule included.

    Args:
        names: of the parameters that train.
        section: the stage's.

    Raises:
        UserError: a pattern of ``learning_rates`` matches nothing that trains.
    """
    own = {entry.modules: entry.learning_rate for entry in section.learning_rates}
    for pattern in own:
        require_match(pattern, names, where="learning_rates")
    factor = section.rate_factor()
    rates: dict[str, float] = {}
    for name in names:
        special = _first(name, tuple(own))
        pattern = special or _first(name, section.train) or name
        rate = own[special] if special else section.learning_rate
        rates.setdefault(pattern, rate * factor)
    return rates


def _first(name: str, patterns: Sequence[str]) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
