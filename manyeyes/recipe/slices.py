"""Slices: the part of a recipe that a stage may see, as canonical JSON.

A slice is what the three skins pass around and what the fingerprint covers. JSON text, not a
mapping, because KFP turns the integers of a mapping into floats. Sorted keys and no spaces, so
that equal slices are equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from typing import TypeVar

from pydantic import TypeAdapter

from manyeyes.errors import UserError, unknown
from manyeyes.recipe.base import Section
from manyeyes.recipe.fusions import ChannelConcat
from manyeyes.recipe.sections import (
    EvalSection,
    ImportedData,
    ModelSection,
    Recipe,
    RegisterSection,
    StarterData,
    TrainSection,
    ValidateSection,
)


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
    seed, model = recipe.seed, recipe.model
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
            section = recipe.prealign.experts[expert]
            return TrainSlice(seed=seed, model=alone(model, expert), section=section, expert=expert)
        case "pretrain":
            return TrainSlice(seed=seed, model=model, section=recipe.pretrain)
        case "sft":
            return TrainSlice(seed=seed, model=model, section=recipe.sft)
        case "eval":
            return EvalSlice(seed=seed, model=model, section=recipe.evaluation)
        case "register":
            return RegisterSlice(name=recipe.name, section=recipe.registration)
    raise unknown("stage", stage, SLICE_TYPES)


def alone(model: ModelSection, expert: str) -> ModelSection:
    """Return the part of a mixture that the pre-alignment of one expert depends on.

    One expert alone has nothing to be fused with and is looked at on the common grid, so that
    another fusion, or another expert beside it, does not align it again.
    """
    if len(model.encoders) == 1:
        return model
    (encoder,) = (encoder for encoder in model.encoders if encoder.name == expert)
    return model.model_copy(
        update={
            "encoders": (encoder.model_copy(update={"grid": None}),),
            "fusion": ChannelConcat(kind="channel_concat"),
        }
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
    data = stage_slice(recipe, stage, expert).model_dump(mode="json", by_alias=True)
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def slice_digest(text: str) -> str:
    """Return the sha256 of a slice's canonical JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def parse_slice(text: str, kind: type[SliceType]) -> SliceType:
    """Read a slice back into its typed form."""
    return TypeAdapter(kind).validate_json(text)
