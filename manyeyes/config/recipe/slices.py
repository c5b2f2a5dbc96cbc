"""Slices: the part of a recipe that a stage may see, as canonical JSON.

A slice is what the three skins pass around and what the fingerprint covers. JSON text, not a
mapping, because KFP turns the integers of a mapping into floats. Sorted keys and no spaces, so
that equal slices are equal bytes. A key without a value is left out, so that a recipe's slices
(and with them its fingerprints) do not change when the schema learns another optional key.

A training stage may have a model or a template of its own. Its slice then holds that model, with
that template, in the place of the recipe's: what a stage sees does not tell where in the recipe it
was written, so a high-resolution recipe's ``pretrain`` at low resolution is the low-resolution
recipe's, and comes from the content store.
"""

from __future__ import annotations

import hashlib
import json
from typing import TypeVar

from pydantic import TypeAdapter

from manyeyes.config.recipe.base import Section
from manyeyes.config.recipe.sections import (
    EvalSection,
    ImportedData,
    ModelSection,
    Recipe,
    RegisterSection,
    StarterData,
    TrainSection,
    ValidateSection,
)
from manyeyes.errors import UserError, unknown
from manyeyes.steps import STEPS, Task


class PrepareSlice(Section):
    """What ``prepare`` sees."""

    seed: int
    data: StarterData | ImportedData


class ValidateSlice(Section):
    """What ``validate`` sees."""

    seed: int
    section: ValidateSection


class TrainSlice(Section):
    """What ``prealign`` (for one expert), ``pretrain`` and ``sft`` see."""

    seed: int
    model: ModelSection
    section: TrainSection
    expert: str | None = None


class EvalSlice(Section):
    """What ``eval`` sees."""

    seed: int
    model: ModelSection
    section: EvalSection


class RegisterSlice(Section):
    """What ``register`` sees."""

    name: str
    section: RegisterSection


SliceType = TypeVar("SliceType", bound=Section)


def stage_slice(recipe: Recipe, stage: str, expert: str | None = None) -> Section:
    """Return the typed slice of one stage.

    Raises:
        UserError: ``expert`` is not an encoder of the recipe, or is missing for ``prealign``.
    """
    seed = recipe.seed
    match stage:
        case "prepare":
            return PrepareSlice(seed=seed, data=recipe.data)
        case "validate":
            return ValidateSlice(seed=seed, section=recipe.validation)
        case "prealign":
            if expert is None:
                raise UserError("Stage prealign trains one expert: name it with --expert.")
            if expert not in recipe.prealign.experts:
                raise unknown("expert", expert, recipe.prealign.experts)
            return _train_slice(recipe, recipe.prealign.experts[expert], expert)
        case "pretrain":
            return _train_slice(recipe, recipe.pretrain)
        case "sft":
            return _train_slice(recipe, recipe.sft)
        case "eval":
            return EvalSlice(seed=seed, model=recipe.final_model, section=recipe.evaluation)
        case "register":
            return RegisterSlice(name=recipe.name, section=recipe.registration)
    raise unknown("stage", stage, SLICE_TYPES)


def _train_slice(recipe: Recipe, section: TrainSection, expert: str | None = None) -> TrainSlice:
    """Resolve a stage's own model and template into the slice's model; one expert's is alone.

    So another fusion, or another expert beside it, does not align an expert again.
    """
    model = recipe.stage_model(section)
    return TrainSlice(
        seed=recipe.seed,
        model=model.alone(expert) if expert else model,
        section=section.model_copy(update={"model": None, "template": None}),
        expert=expert,
    )


SLICE_TYPES: dict[str, type[Section]] = {
    "prepare": PrepareSlice,
    "validate": ValidateSlice,
    "prealign": TrainSlice,
    "pretrain": TrainSlice,
    "sft": TrainSlice,
    "eval": EvalSlice,
    "register": RegisterSlice,
}


def slice_json(recipe: Recipe, stage: str, expert: str | None = None) -> str:
    """Return the canonical JSON of one stage's slice."""
    data = stage_slice(recipe, stage, expert).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def slice_digest(text: str) -> str:
    """Return the sha256 of a slice's canonical JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def parse_slice(text: str, kind: type[SliceType]) -> SliceType:
    """Read a slice back into its typed form."""
    return TypeAdapter(kind).validate_json(text)


def tasks_of(recipe: Recipe) -> list[Task]:
    """Return the tasks of a recipe, in the order of the pipeline."""
    experts = list(recipe.prealign.experts)
    return [
        Task(step.name, expert)
        for step in STEPS
        for expert in (experts if step.per_expert else [None])
    ]
