"""What every section is made of: the strict base, and the words several of them use."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,59}$"
Weight = Annotated[float, Field(gt=0.0, le=1e9)]
"""A share of a whole before it is divided by the sum of all."""
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Section(BaseModel):
    """Base of every section: immutable, no coercion, no unknown keys, finite numbers."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        populate_by_name=True,
    )
