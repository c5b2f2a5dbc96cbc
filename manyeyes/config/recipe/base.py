"""What every section is made of: the strict base, and the words several of them use."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _filled(allowed: str) -> AfterValidator:
    """Refuse a text of nothing, which as a path is the present folder and as a pattern no part."""

    def check(value: str) -> str:
        if not value.strip():
            raise ValueError(f"got {value!r}; allowed {allowed}")
        return value

    return AfterValidator(check)


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,59}$"
Weight = Annotated[float, Field(gt=0.0, le=1e9)]
"""A share of a whole before it is divided by the sum of all."""
NAME_WORDS = (
    "1 to 60 small letters, digits, '.', '_' and '-', of which the first is a letter or a digit"
)
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Weights = Annotated[
    str, _filled("are zoo:NAME, package:NAME, a model of the Hugging Face hub, a folder, or random")
]
"""Of an encoder."""
LanguageWeights = Annotated[
    str, _filled("are zoo:NAME, a model of the Hugging Face hub, or a folder")
]
Imported = Annotated[
    str, _filled("is a folder of manyeyes import-weights; without the key all starts at random")
]
Pattern = Annotated[str, _filled("are patterns over names of parameters, like projector.*")]
Licence = Annotated[str, _filled("are SPDX names, like CC-BY-4.0")]
Task = Annotated[str, _filled("are tasks of the dataset")]


class Section(BaseModel):
    """Base of every section: immutable, no coercion, no unknown keys, finite numbers."""

    file_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that a file may have as well: they are resolved before the section is made."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        populate_by_name=True,
    )
