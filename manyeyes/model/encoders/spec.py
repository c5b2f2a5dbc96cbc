"""What an encoder is, as data: its shape, where its weights come from, and its preprocessing.

Frozen dataclasses, so that a spec is a literal in the registry and JSON in a checkpoint's config.
Each family keeps its architecture's section in its own file, beside the class that it builds; the
JSON tells them apart by ``family``.

No torch here: ``manyeyes check`` reads the table. A family's file imports torch, so a row of the
table holds its section as a :class:`Later` until the encoder is built (or a value is asked for).
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter

Triple = tuple[float, float, float]
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)
CLOSED = ConfigDict(extra="forbid")
"""How a section reads JSON: a key it does not know is an error."""


class Architecture:
    """Base of every family's section: a frozen dataclass, whose ``family`` names its file."""

    __pydantic_config__ = CLOSED
    family: str


class Later(Architecture):
    """A section's values, before the file that defines the section is imported.

    Stands for the section: has its values, equals it, and becomes it with :func:`settle`.
    """

    def __init__(self, family: str, section: str, **values: object) -> None:
        self.family = family
        self._section = section
        self._values = values

    def settled(self) -> Any:  # noqa: ANN401  (a section, or a part of one)
        """Return the section itself; imports its family."""
        section = getattr(importlib.import_module(_file_of(self.family)), self._section)
        return section(**{name: settle(value) for name, value in self._values.items()})

    def __getattr__(self, name: str) -> object:
        """Look a value up, importing the family."""
        if name.startswith("_"):
            raise AttributeError(name)  # copying and pickling ask for hooks that are not there
        return getattr(self.settled(), name)

    def __eq__(self, other: object) -> bool:
        """Compare as the section would."""
        return bool(self.settled() == settle(other))

    def __hash__(self) -> int:
        """Hash as the section would."""
        return hash(self.settled())


def settle(value: Any) -> Any:  # noqa: ANN401  (sections, parts of sections, and plain values)
    """Return a value with every :class:`Later` in it replaced by what it stands for."""
    if isinstance(value, Later):
        return value.settled()
    if isinstance(value, tuple):
        return tuple(settle(part) for part in value)
    return value


@dataclass(frozen=True)
class EncoderSpec:
    """One row of the encoder table."""

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    checkpoint: str
    """Where the pretrained weights are published (``zoo:NAME``, ``package:NAME`` or a hub id)."""
    image_size: int
    """Side in pixels of the square this encoder looks at."""
    native_grid: int
    """Side of the feature grid before it is resized to the common one."""
    width: int
    """Channels of the features."""
    architecture: Architecture
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    """Of the pixels (0..1) that the tower was trained on; published CLIPs share theirs."""
    position: Literal["learned", "none", "learned+relative", "learned+rotary", "row+column"] = (
        "learned"
    )
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    """How the canvas becomes the input; always antialiased."""
    feature_layer: int = -1
    """Which block (or stage) gives the features, counted from the end; -1 is the last."""

    @property
    def family(self) -> str:
        """The family that builds this spec."""
        return self.architecture.family


_ADAPTER: TypeAdapter[EncoderSpec] = TypeAdapter(EncoderSpec)


def spec_to_json(spec: EncoderSpec) -> dict[str, object]:
    """Return the spec as plain JSON values, for a checkpoint's ``config.json``."""
    return asdict(replace(spec, architecture=settle(spec.architecture)))


def spec_from_json(data: dict[str, Any]) -> EncoderSpec:
    """Read a spec written by ``spec_to_json``; imports its family.

    Raises:
        pydantic.ValidationError: a key is missing, unknown or of the wrong type.
        UserError: no such family.
    """
    from manyeyes.model.encoders.registry import find_family

    values = data.get("architecture")
    name = str(values.get("family")) if isinstance(values, dict) else "none"
    family = find_family(name)
    section = getattr(importlib.import_module(_file_of(name)), family.section)
    architecture = TypeAdapter(section).validate_python(values)
    return _ADAPTER.validate_python({**data, "architecture": architecture})


def _file_of(family: str) -> str:
    return f"{__package__}.{family}"
