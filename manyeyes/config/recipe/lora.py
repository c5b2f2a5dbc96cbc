"""The section of low-rank adapters, an optional part of a training stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manyeyes.config.recipe.base import Pattern, Positive, Section


class Lora(Section):
    """Low-rank adapters beside frozen linear layers (arXiv:2106.09685); merged at the end."""

    modules: tuple[Pattern, ...] = Field(min_length=1)
    """Patterns over names of linear layers (``llm.*.q_proj``)."""
    rank: Positive
    alpha: Positive
    """The adapter's product is scaled by ``alpha / rank``."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    quantise: Literal["none", "nf4"] = "none"
    """``nf4`` holds the frozen weights of these layers in four bits (QLoRA, arXiv:2305.14314)."""
