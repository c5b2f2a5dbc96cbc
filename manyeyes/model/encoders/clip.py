"""CLIP's vision transformer, along the path Eagle takes through it.

The class token is dropped before the pre-layernorm, so that the blocks see patches only, and the
features are the last block's output without the post-layernorm (Eagle and LLaVA-HR; LLaVA-1.5
takes the block before with the class token). At another input size the position table is
interpolated bicubically with antialiasing in float32. The tower is transformers'
``CLIPVisionModel``; what this path does not use is removed from it.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from manyeyes.model.encoders.base import Encoder, Normalization, resample_positions

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import ClipArchitecture, EncoderSpec


class ClipEncoder(Encoder):
    """CLIP ViT patch features."""

    tower: CLIPVisionModel

    def __init__(
        self,
        spec: EncoderSpec,
        architecture: ClipArchitecture,
        grid: int,
        normalization: Normalization,
    ) -> None:
        super().__init__(spec, grid, normalization)
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=spec.width,
                intermediate_size=architecture.mlp_width,
                num_hidden_layers=architecture.depth,
                num_attention_heads=architecture.heads,
                image_size=architecture.pretrained_image_size,
                patch_size=architecture.patch,
                hidden_act=architecture.activation,
            )
        )
        self.prune("post_layernorm", "embeddings.class_embedding")
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
        table = embeddings.position_embedding.weight[1:]  # row 0 belongs to the class token
        positions_NC = resample_positions(table, grid, antialias=True)
        hidden_BNC = patches_BCGG.flatten(2).transpose(1, 2) + positions_NC
        hidden_BNC = self.tower.pre_layrnorm(hidden_BNC)
        for block in self._blocks:
            hidden_BNC = block(hidden_BNC, None)
        features: Tensor = hidden_BNC.transpose(1, 2)
        return features.reshape(batch, width, grid, grid)

    def rename(self, key: str) -> str | None:
        """Accept a vision-only checkpoint or a whole CLIP, with or without ``vision_model.``."""
        if key.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale")):
            return None
        key = key.removeprefix("vision_model.")
        return None if key == "embeddings.position_ids" or key in self.unused_keys else key
