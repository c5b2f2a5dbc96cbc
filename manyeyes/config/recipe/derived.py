"""Defaults that follow from other keys of a recipe.

What is always the same is a default of the schema. These are filled in before the schema sees the
values, wherever nobody wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from manyeyes.config.recipe.base import NAME_PATTERN

Values = Mapping[Any, Any]
IN_FILES = {"RegisterSection": ("model_name",)}
"""Section to its required keys that a file need not have."""


def derive(values: Values) -> Values:
    """Return a recipe's values with what follows from them; wrong ones are left as they are."""
    found = _changed(values, "register", lambda section: _named(section, values.get("name")))
    for stage in ("pretrain", "sft"):
        found = _changed(found, stage, _added_up)
    return _changed(found, "prealign", _each_trained)


def _changed(section: Values, key: str, change: Callable[[Values], Values]) -> Values:
    """Return a section with one of its sections changed, if that is one."""
    inner = section.get(key)
    return {**section, key: change(inner)} if isinstance(inner, Mapping) else section


def _named(section: Values, name: object) -> Values:
    """Register the model under the name of the recipe; of a wrong one is told elsewhere."""
    right = isinstance(name, str) and re.fullmatch(NAME_PATTERN, name)
    return {"model_name": name if right else "unnamed", **section}


def _each_trained(prealign: Values) -> Values:
    """Let an encoder of which nothing else is said train itself and its projector."""
    experts = prealign.get("experts")
    if not isinstance(experts, Mapping):
        return prealign
    given = {
        name: _added_up({"train": [f"encoders.{name}.*", "projector.*"], **section})
        if isinstance(section, Mapping)
        else section
        for name, section in experts.items()
    }
    return {**prealign, "experts": given}


def _added_up(section: Values) -> Values:
    """Say how many micro-batches make the batch, where one process takes all of them."""
    batch, engine = section.get("batch"), section.get("engine", {"kind": "single"})
    if not isinstance(batch, Mapping) or "accumulation" in batch or engine != {"kind": "single"}:
        return section
    size = batch.get("size")
    part = batch.get("per_device", size)
    if not isinstance(size, int) or not isinstance(part, int) or part < 1 or size % part:
        return section
    return {**section, "batch": {**batch, "accumulation": size // part}}
