"""The fusions a recipe can name: one section per published mechanism, told apart by ``kind``.

``version`` rises when a fusion makes other tokens of the same features: it is in the keys.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from manyeyes.config.recipe.base import Name, Positive, Section


class ChannelConcat(Section):
    """Eagle's fusion: feature maps side by side along the channel axis."""

    kind: Literal["channel_concat"]
    version: ClassVar[int] = 1


class SequenceAppend(Section):
    """Each expert's tokens, with a projector of their own, one expert after the other."""

    kind: Literal["sequence_append"]
    version: ClassVar[int] = 1


class PatchInfoMining(Section):
    """Mini-Gemini's fusion: each low-resolution token asks its window of a high-resolution map."""

    kind: Literal["patch_info_mining"]
    version: ClassVar[int] = 1
    low: Name
    """Encoder that gives the tokens."""
    high: Name
    """Encoder whose map is mined; its grid is a multiple of the low one's times ``crops``."""
    crops: Positive
    """The low encoder also looks at crops x crops parts (HD: 2); 1 for the whole only."""


class DeformableAttention(Section):
    """The first encoder's tokens gather from every map at a few learned places each."""

    kind: Literal["deformable_attention"]
    version: ClassVar[int] = 1
    heads: Positive
    points: Positive
    """Places per head and encoder."""


class MixtureOfResolution(Section):
    """LLaVA-HR's fusion: adapters in a CLIP's blocks mix in a high-resolution expert's map."""

    kind: Literal["mixture_of_resolution"]
    version: ClassVar[int] = 1
    fast: Name
    """Encoder that gives the tokens, a CLIP."""
    slow: Name
    before_blocks: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Blocks of the fast encoder with an adapter in front (published: 6, 12, 18 of 24)."""


class SpatialVisionAggregator(Section):
    """Cambrian-1's fusion: queries on a grid gather from every map, also inside the LLM."""

    kind: Literal["spatial_vision_aggregator"]
    version: ClassVar[int] = 1
    width: Positive
    heads: Positive
    depth: Positive
    """Samplers in front of the language model."""
    num_layers: Annotated[int, Field(ge=0)]
    """Decoder layers that are followed by a sampler."""
    first_layer: Annotated[int, Field(ge=0)]
    layer_stride: Positive

    @model_validator(mode="after")
    def _heads_divide(self) -> SpatialVisionAggregator:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self


class PatchEmbedding(Section):
    """EVE's way in: the patch embedding layer's tokens, as many as the picture's shape has."""

    kind: Literal["patch_embedding"]
    version: ClassVar[int] = 1


FusionSection = (
    ChannelConcat
    | SequenceAppend
    | PatchInfoMining
    | DeformableAttention
    | MixtureOfResolution
    | SpatialVisionAggregator
    | PatchEmbedding
)
