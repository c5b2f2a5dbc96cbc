"""What an encoder is, as data: its shape, where its weights come from, and its preprocessing.

Frozen dataclasses, so that a spec is a literal in the registry and JSON in a checkpoint's config.
Each family has an architecture type of its own; the union is told apart by the field ``family``.
No torch here: ``manyeyes check`` reads specs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

Family = Literal[
    "clip",
    "convnext",
    "sam",
    "eva02",
    "pix2struct",
    "dinov2",
    "efficientnet",
    "patch_embedding",
]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ClipArchitecture:
    """A CLIP vision transformer (arXiv:2103.00020)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    depth: int
    heads: int
    mlp_width: int
    patch: int
    pretrained_image_size: int
    """Image side the position table was trained at; other sizes interpolate it."""
    activation: Literal["quick_gelu", "gelu"]
    family: Literal["clip"] = "clip"


@dataclass(frozen=True)
class ConvNextArchitecture:
    """A ConvNeXt (arXiv:2201.03545); stage i has stride 4 * 2**i."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    norm_epsilon: float
    layer_scale: float
    stages: Literal["last", "all"] = "last"
    """``all`` puts every stage's map side by side, finest first, as Mini-Gemini and Cambrian do."""
    family: Literal["convnext"] = "convnext"


@dataclass(frozen=True)
class SamArchitecture:
    """SAM's image encoder (arXiv:2304.02643): a ViT with windows, global blocks and a neck."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    hidden_width: int
    depth: int
    heads: int
    patch: int
    window: int
    global_blocks: tuple[int, ...]
    neck_width: int
    unshuffle: int
    """Side of the square of cells folded into channels (Eagle uses 2)."""
    family: Literal["sam"] = "sam"


@dataclass(frozen=True)
class Eva02Architecture:
    """EVA-02's detection backbone (arXiv:2303.11331): windows, global blocks, 2-D rotary."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    depth: int
    heads: int
    patch: int
    window: int
    global_blocks: tuple[int, ...]
    pretrained_image_size: int
    pretrained_sequence: int
    """Side of the grid whose rotary frequencies were trained; other sides interpolate them."""
    family: Literal["eva02"] = "eva02"


@dataclass(frozen=True)
class Pix2StructArchitecture:
    """Pix2Struct's image encoder (arXiv:2210.03347)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    depth: int
    heads: int
    head_width: int
    mlp_width: int
    patch: int
    positions: int
    """Rows of each of the two position tables; ids start at 1."""
    family: Literal["pix2struct"] = "pix2struct"


@dataclass(frozen=True)
class Dinov2Architecture:
    """A DINOv2 vision transformer (arXiv:2304.07193)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    depth: int
    heads: int
    mlp_ratio: int
    patch: int
    pretrained_image_size: int
    """Image side the position table was trained at; other sizes interpolate it."""
    family: Literal["dinov2"] = "dinov2"


@dataclass(frozen=True)
class EfficientNetStage:
    """Blocks of one width; the first of them has the stride."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


@dataclass(frozen=True)
class EfficientNetArchitecture:
    """An EfficientNet-Lite (arXiv:1905.11946, without squeeze-and-excite)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    stem_width: int
    stages: tuple[EfficientNetStage, ...]
    family: Literal["efficientnet"] = "efficientnet"


@dataclass(frozen=True)
class PatchEmbeddingArchitecture:
    """EVE's patch embedding layer (arXiv:2406.11832): no tower at all."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    patch: int
    pooling: int
    """Side of the square of patches that make a cell."""
    heads: int
    pieces: int
    """A picture takes whole pieces of its canvas, this many along the longer side: the teacher's
    grid, so that each of its cells is one cell here, or a square of them."""
    family: Literal["patch_embedding"] = "patch_embedding"


Architecture = (
    ClipArchitecture
    | ConvNextArchitecture
    | SamArchitecture
    | Eva02Architecture
    | Pix2StructArchitecture
    | Dinov2Architecture
    | EfficientNetArchitecture
    | PatchEmbeddingArchitecture
)


@dataclass(frozen=True)
class EncoderSpec:
    """One row of the encoder table."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str
    """Where the pretrained weights are published (``zoo:NAME``, ``package:NAME`` or a hub id)."""
    image_size: int
    """Side in pixels of the square this encoder looks at."""
    mean: Triple
    std: Triple
    resample: Literal["bilinear", "bicubic"]
    """How the canvas becomes the input; always antialiased."""
    feature_layer: int
    """Which block (or stage) gives the features, counted from the end; -1 is the last."""
    native_grid: int
    """Side of the feature grid before it is resized to the common one."""
    width: int
    """Channels of the features."""
    position: Literal["learned", "none", "learned+relative", "learned+rotary", "row+column"]
    architecture: Annotated[Architecture, Field(discriminator="family")]

    @property
    def family(self) -> Family:
        """The family that builds this spec."""
        return self.architecture.family


_ADAPTER: TypeAdapter[EncoderSpec] = TypeAdapter(EncoderSpec)


def spec_to_json(spec: EncoderSpec) -> dict[str, object]:
    """Return the spec as plain JSON values, for a checkpoint's ``config.json``."""
    return asdict(spec)


def spec_from_json(data: dict[str, object]) -> EncoderSpec:
    """Read a spec written by ``spec_to_json``.

    Raises:
        pydantic.ValidationError: a key is missing, unknown or of the wrong type.
    """
    return _ADAPTER.validate_python(data)
