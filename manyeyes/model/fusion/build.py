"""From a recipe's section to a fusion: one ``match``; mypy reports the arm that is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, assert_never

from pydantic import Field, TypeAdapter

from manyeyes.config.recipe.fusions import (
    ChannelConcat,
    DeformableAttention,
    FusionSection,
    MixtureOfResolution,
    PatchEmbedding,
    PatchInfoMining,
    SequenceAppend,
    SpatialVisionAggregator,
)
from manyeyes.model.fusion.channel_concat import ChannelConcatFusion
from manyeyes.model.fusion.deformable_attention import DeformableAttentionFusion
from manyeyes.model.fusion.mixture_of_resolution import MixtureOfResolutionFusion
from manyeyes.model.fusion.patch_embedding import PatchEmbeddingFusion
from manyeyes.model.fusion.patch_info_mining import PatchInfoMiningFusion
from manyeyes.model.fusion.sequence_append import SequenceAppendFusion
from manyeyes.model.fusion.spatial_vision_aggregator import SpatialVisionAggregatorFusion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from manyeyes.model.fusion.base import Eyes, Fusion

_ADAPTER: TypeAdapter[FusionSection] = TypeAdapter(
    Annotated[FusionSection, Field(discriminator="kind")]
)


def fusion_from_json(data: Mapping[str, object]) -> FusionSection:
    """Read the section a checkpoint's ``config.json`` keeps.

    Raises:
        pydantic.ValidationError: a key is missing, unknown or of the wrong type.
    """
    return _ADAPTER.validate_python(dict(data), strict=False)


def build_fusion(section: FusionSection, eyes: Eyes) -> Fusion:
    """Build the fusion a recipe names, with random weights.

    Args:
        section: the kind and its settings.
        eyes: the experts in front of it and the language model behind it.

    Raises:
        UserError: the mechanism cannot work with these experts.
    """
    match section:
        case ChannelConcat():
            return ChannelConcatFusion(eyes)
        case SequenceAppend():
            return SequenceAppendFusion(eyes)
        case PatchInfoMining():
            return PatchInfoMiningFusion(section, eyes)
        case DeformableAttention():
            return DeformableAttentionFusion(section, eyes)
        case MixtureOfResolution():
            return MixtureOfResolutionFusion(section, eyes)
        case SpatialVisionAggregator():
            return SpatialVisionAggregatorFusion(section, eyes)
        case PatchEmbedding():
            return PatchEmbeddingFusion(eyes)
        case _:
            assert_never(section)
