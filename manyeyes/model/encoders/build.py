"""From a row of the table to a module: one ``match`` over the architecture types."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from manyeyes.model.encoders.clip import ClipEncoder
from manyeyes.model.encoders.convnext import ConvNextEncoder
from manyeyes.model.encoders.dinov2 import Dinov2Encoder
from manyeyes.model.encoders.efficientnet import EfficientNetEncoder
from manyeyes.model.encoders.eva02 import Eva02Encoder
from manyeyes.model.encoders.patch_embedding import PatchEmbeddingEncoder
from manyeyes.model.encoders.pix2struct import Pix2StructEncoder
from manyeyes.model.encoders.registry import find_spec
from manyeyes.model.encoders.sam import SamEncoder
from manyeyes.model.encoders.spec import (
    ClipArchitecture,
    ConvNextArchitecture,
    Dinov2Architecture,
    EfficientNetArchitecture,
    EncoderSpec,
    Eva02Architecture,
    PatchEmbeddingArchitecture,
    Pix2StructArchitecture,
    SamArchitecture,
)

if TYPE_CHECKING:
    from manyeyes.model.encoders.base import Encoder, Normalization
    from manyeyes.recipe import EncoderSection


def build_encoder(
    section: EncoderSection, *, grid: int, normalization: Normalization = "per_encoder"
) -> Encoder:
    """Build the encoder a recipe names, with random weights.

    Args:
        section: the expert; only ``spec`` is used, ``weights`` are loaded by ``load_weights``.
        grid: side of the common feature grid.
        normalization: ``shared`` feeds CLIP-normalised pixels, as Eagle's released code does.

    Raises:
        UserError: the table has no such spec.
    """
    return encoder_from_spec(find_spec(section.spec), grid=grid, normalization=normalization)


def encoder_from_spec(spec: EncoderSpec, *, grid: int, normalization: Normalization) -> Encoder:
    """Build an encoder from a spec, with random weights."""
    architecture = spec.architecture
    match architecture:
        case ClipArchitecture():
            return ClipEncoder(spec, architecture, grid, normalization)
        case ConvNextArchitecture():
            return ConvNextEncoder(spec, architecture, grid, normalization)
        case SamArchitecture():
            return SamEncoder(spec, architecture, grid, normalization)
        case Eva02Architecture():
            return Eva02Encoder(spec, architecture, grid, normalization)
        case Pix2StructArchitecture():
            return Pix2StructEncoder(spec, architecture, grid, normalization)
        case Dinov2Architecture():
            return Dinov2Encoder(spec, architecture, grid, normalization)
        case EfficientNetArchitecture():
            return EfficientNetEncoder(spec, architecture, grid, normalization)
        case PatchEmbeddingArchitecture():
            return PatchEmbeddingEncoder(spec, architecture, grid, normalization)
        case _:
            assert_never(architecture)
