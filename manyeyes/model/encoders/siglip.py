"""SigLIP's vision transformer (arXiv:2303.15343), as Cambrian-1 uses it.

No class token: the features are the patches after the final norm. The attention head that pools
them into one vector for the contrast with text is removed. At another input size the position
table is interpolated bicubically in float32 without antialiasing, as transformers does. The tower
is transformers' ``SiglipVisionModel``.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from manyeyes.model.encoders.base import Encoder, Normalization, resample_positions
from manyeyes.model.encoders.spec import Architecture

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import EncoderSpec

NOT_IN_TOWER = ("text_model.", "logit_scale", "logit_bias")


@dataclass(frozen=True)
class SiglipArchitecture(Architecture):
    """A SigLIP vision transformer; so400m is the shape-optimised one of 400 M parameters."""

    depth: int
    heads: int
    mlp_width: int
    patch: int
    pretrained_image_size: int
    """Image side the position table was trained at; other sizes interpolate it."""
    family: Literal["siglip"] = "siglip"


class SiglipEncoder(Encoder):
    """SigLIP patch features after the final norm."""

    tower: SiglipVisionModel

    def __init__(
        self,
        spec: EncoderSpec,
        architecture: SiglipArchitecture,
        grid: int,
        normalization: Normalization,
    ) -> None:
        super().__init__(spec, grid, normalization)
        self.tower = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=spec.width,
                intermediate_size=architecture.mlp_width,
                num_hidden_layers=architecture.depth,
                num_attention_heads=architecture.heads,
                image_size=architecture.pretrained_image_size,
                patch_size=architecture.patch,
            )
        )
        self.prune("head")
        self.drop_blocks(self._blocks)

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self.tower.encoder.layers
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def native(self, pixels: Tensor) -> Tensor:
        """Return patch features (B, C, G, G)."""
        embeddings = self.tower.embeddings
        patches_BCGG = embeddings.patch_embedding(pixels.to(self.dtype))
        batch, width, grid, _ = patches_BCGG.shape
        table_NC = embeddings.position_embedding.weight
        hidden_BNC = patches_BCGG.flatten(2).transpose(1, 2)
        hidden_BNC = hidden_BNC + resample_positions(table_NC, grid, antialias=False)
        for block in self._blocks:
            hidden_BNC = block(hidden_BNC, None)
        features: Tensor = self.tower.post_layernorm(hidden_BNC).transpose(1, 2)
        return features.reshape(batch, width, grid, grid)

    def rename(self, key: str) -> str | None:
        """Accept a vision-only checkpoint or a whole SigLIP, with or without ``vision_model.``."""
        if key.startswith(NOT_IN_TOWER):
            return None
        key = key.removeprefix("vision_model.")
        return None if key == "embeddings.position_ids" or key in self.unused_keys else key
