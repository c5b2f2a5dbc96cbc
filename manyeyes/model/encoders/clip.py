"""CLIP's vision transformer, along either path that the authors take through it.

Eagle and LLaVA-HR drop the class token before the pre-layernorm, so that the blocks see patches
only, and take the last block's output. LLaVA-1.5, Mini-Gemini and Cambrian-1 run the model as it
was trained, with the class token, and take the patches after the block before the last. Neither
applies the post-layernorm.

At another input size the position table is interpolated bicubically in float32: on Eagle's path
with antialiasing, as its code does (PyTorch's kernel is another one then, also for a larger grid),
on the other without, as transformers does.

The tower is transformers' ``CLIPVisionModel``; what the path does not use is removed from it.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from manyeyes.model.encoders.base import Encoder, Normalization, resample_positions
from manyeyes.model.encoders.spec import Architecture

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import EncoderSpec


@dataclass(frozen=True)
class ClipArchitecture(Architecture):
    """A CLIP vision transformer (arXiv:2103.00020)."""

    depth: int
    heads: int
    mlp_width: int
    patch: int
    pretrained_image_size: int
    """Image side the position table was trained at; other sizes interpolate it."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    class_token: bool = False
    """Whether the blocks see the class token, which the features leave out either way."""
    family: Literal["clip"] = "clip"


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
        self.class_token = architecture.class_token
        self.prune("post_layernorm")
        if not self.class_token:
            self.prune("embeddings.class_embedding")
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
        table = embeddings.position_embedding.weight  # row 0 belongs to the class token
        positions_NC = resample_positions(table[1:], grid, antialias=not self.class_token)
        hidden_BNC = patches_BCGG.flatten(2).transpose(1, 2) + positions_NC
        if self.class_token:
            class_B1C = (embeddings.class_embedding + table[0]).expand(batch, 1, -1)
            hidden_BNC = torch.cat([class_B1C, hidden_BNC], dim=1)
        hidden_BNC = self.tower.pre_layrnorm(hidden_BNC)
        for block in self._blocks:
            hidden_BNC = block(hidden_BNC, None)
        patches_BNC = hidden_BNC[:, 1:] if self.class_token else hidden_BNC
        features: Tensor = patches_BNC.transpose(1, 2)
        return features.reshape(batch, width, grid, grid)

    def rename(self, key: str) -> str | None:
        """Accept a vision-only checkpoint or a whole CLIP, with or without ``vision_model.``."""
        if key.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale")):
            return None
        key = key.removeprefix("vision_model.")
        return None if key == "embeddings.position_ids" or key in self.unused_keys else key
