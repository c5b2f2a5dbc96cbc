"""ConvNeXt: the map of the last stage, or of all stages, without the final norm and head.

Eagle takes the last stage's map. Mini-Gemini and Cambrian take all of them, each resized to one
grid (bilinear in float32, corners not aligned) and put side by side along the channels.

The tower is transformers' ``ConvNextModel``. Eagle's weights are published for timm (by OpenCLIP),
under other names for the same tensors; ``TIMM_NAMES`` is the whole translation. transformers fixes
the norms' epsilon at 1e-6 while the OpenCLIP models were trained with 1e-5, so it is set here.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ConvNextConfig, ConvNextModel

from manyeyes.model.encoders.base import Encoder, Normalization
from manyeyes.model.encoders.spec import Architecture

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import EncoderSpec

TIMM_NAMES: tuple[tuple[str, str], ...] = (
    (r"^stem\.0\.", "embeddings.patch_embeddings."),
    (r"^stem\.1\.", "embeddings.layernorm."),
    (r"^stages\.(\d+)\.downsample\.", r"encoder.stages.\1.downsampling_layer."),
    (
        r"^stages\.(\d+)\.blocks\.(\d+)\.gamma$",
        r"encoder.stages.\1.layers.\2.layer_scale_parameter",
    ),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.", r"encoder.stages.\1.layers.\2.dwconv."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.norm\.", r"encoder.stages.\1.layers.\2.layernorm."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.", r"encoder.stages.\1.layers.\2.pwconv1."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.", r"encoder.stages.\1.layers.\2.pwconv2."),
)
TEXT_ALONE = ("logit_scale", "positional_embedding", "text_projection")
NOT_IN_TOWER = ("classifier.", "head.", "transformer.", "token_embedding.", "ln_final.", "text.")


@dataclass(frozen=True)
class ConvNextArchitecture(Architecture):
    """A ConvNeXt (arXiv:2201.03545); stage i has stride 4 * 2**i."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    norm_epsilon: float
    layer_scale: float = 1e-6
    stages: Literal["last", "all"] = "last"
    """``all`` puts every stage's map side by side, finest first, as Mini-Gemini and Cambrian do."""
    family: Literal["convnext"] = "convnext"


class ConvNextEncoder(Encoder):
    """ConvNeXt features."""

    tower: ConvNextModel

    def __init__(
        self,
        spec: EncoderSpec,
        architecture: ConvNextArchitecture,
        grid: int,
        normalization: Normalization,
    ) -> None:
        super().__init__(spec, grid, normalization)
        self.tower = ConvNextModel(
            ConvNextConfig(
                num_stages=len(architecture.depths),
                depths=list(architecture.depths),
                hidden_sizes=list(architecture.widths),
                layer_scale_init_value=architecture.layer_scale,
                image_size=spec.image_size,
            )
        )
        for module in self.tower.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = architecture.norm_epsilon
        self.all_stages = architecture.stages == "all"
        self.prune("layernorm")
        stages = self.tower.encoder.stages
        assert isinstance(stages, nn.ModuleList)
        self.drop_blocks(stages)

    def native(self, pixels: Tensor) -> Tensor:
        """Return the last stage's map (B, C, G, G), or all stages' (B, sum of C_i, H, H)."""
        hidden_BCHW = self.tower.embeddings(pixels.to(self.dtype))
        maps = []
        for stage in self.tower.encoder.stages:
            hidden_BCHW = stage(hidden_BCHW)
            if self.all_stages:
                maps.append(self._resized(hidden_BCHW))
        features: Tensor = torch.cat(maps, dim=1) if self.all_stages else hidden_BCHW.contiguous()
        return features

    def to_grid(self, features: Tensor) -> Tensor:
        """Leave several stages' map alone: each was resized to the grid for itself."""
        return features if self.all_stages else super().to_grid(features)

    def _resized(self, map_BCHW: Tensor) -> Tensor:
        size = (self.grid, self.grid)
        if tuple(map_BCHW.shape[2:]) == size:
            return map_BCHW
        resized = functional.interpolate(
            map_BCHW.float(), size=size, mode="bilinear", align_corners=False
        )
        return resized.to(map_BCHW.dtype)

    def rename(self, key: str) -> str | None:
        """Accept transformers', timm's and OpenCLIP's names."""
        key = key.removeprefix("convnext.").removeprefix("visual.trunk.").removeprefix("trunk.")
        if key.startswith(NOT_IN_TOWER) or key in TEXT_ALONE:
            return None
        for pattern, replacement in TIMM_NAMES:
            key = re.sub(pattern, replacement, key)
        return None if key in self.unused_keys or key.startswith("visual.") else key
