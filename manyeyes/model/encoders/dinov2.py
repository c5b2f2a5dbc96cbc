"""DINOv2: a vision transformer trained without labels (arXiv:2304.07193).

The tower is transformers' ``Dinov2Model``; the features are the patches after the final norm, with
the class token (which the blocks do see) dropped. Its position table was trained for 37 x 37
patches; at another size it is interpolated bicubically in float32 without antialiasing, as the
published model does. transformers 5 renamed the attention's tensors; the published names are
translated by ``PUBLISHED_NAMES``. The giant's MLPs are gated (SwiGLU).
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from manyeyes.model.encoders.base import Encoder, Normalization, resample_positions
from manyeyes.model.encoders.spec import Architecture

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import EncoderSpec

PUBLISHED_NAMES: tuple[tuple[str, str], ...] = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".mlp.weights_out.", ".mlp.down_proj."),
)
STACKED = ".mlp.weights_in."
"""Gate and value of a gated MLP, published as one tensor: gate first."""
GATE_AND_VALUE = (".mlp.gate_proj.", ".mlp.up_proj.")


@dataclass(frozen=True)
class Dinov2Architecture(Architecture):
    """A DINOv2 vision transformer (arXiv:2304.07193)."""

    depth: int
    heads: int
    mlp_ratio: int
    patch: int
    pretrained_image_size: int
    """Image side the position table was trained at; other sizes interpolate it."""
    swiglu: bool = False
    """Whether the MLPs are gated, as those of the giant are (then 8/3 wide instead of 4)."""
    family: Literal["dinov2"] = "dinov2"


class Dinov2Encoder(Encoder):
    """DINOv2 patch features."""

    tower: Dinov2Model

    def __init__(
        self,
        spec: EncoderSpec,
        architecture: Dinov2Architecture,
        grid: int,
        normalization: Normalization,
    ) -> None:
        super().__init__(spec, grid, normalization)
        self.tower = Dinov2Model(
            Dinov2Config(
                hidden_size=spec.width,
                mlp_ratio=architecture.mlp_ratio,
                num_hidden_layers=architecture.depth,
                num_attention_heads=architecture.heads,
                image_size=architecture.pretrained_image_size,
                patch_size=architecture.patch,
                use_swiglu_ffn=architecture.swiglu,
            )
        )
        self.prune("embeddings.mask_token")  # stands for patches hidden in pretraining
        self.drop_blocks(self._blocks)

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self.tower.encoder.layer
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def native(self, pixels: Tensor) -> Tensor:
        """Return patch features (B, C, G, G)."""
        embeddings = self.tower.embeddings
        patches_BCGG = embeddings.patch_embeddings.projection(pixels.to(self.dtype))
        batch, width, grid, _ = patches_BCGG.shape
        table_NC = embeddings.position_embeddings[0]
        positions_NC = resample_positions(table_NC[1:], grid, antialias=False)
        patches_BNC = patches_BCGG.flatten(2).transpose(1, 2) + positions_NC
        class_B1C = (embeddings.cls_token + table_NC[0]).expand(batch, -1, -1)
        hidden_BNC = torch.cat([class_B1C, patches_BNC], dim=1)
        for block in self._blocks:
            hidden_BNC = block(hidden_BNC, None)
        hidden_BNC = self.tower.layernorm(hidden_BNC)[:, 1:]
        features: Tensor = hidden_BNC.transpose(1, 2)
        return features.reshape(batch, width, grid, grid)

    def rename(self, key: str) -> str | tuple[str, ...] | None:
        """Accept the hub's names, before and after transformers 5, with or without ``dinov2.``."""
        if key.startswith("classifier."):
            return None
        key = key.removeprefix("dinov2.")
        for published, name in PUBLISHED_NAMES:
            key = key.replace(published, name)
        if STACKED in key:
            return tuple(key.replace(STACKED, name) for name in GATE_AND_VALUE)
        return None if key in self.unused_keys else key
