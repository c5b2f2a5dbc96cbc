"""ConvNeXt: the map of the last stage, without the final norm and head.

The tower is transformers' ``ConvNextModel``. Eagle's weights are published for timm (by OpenCLIP),
under other names for the same tensors; ``TIMM_NAMES`` is the whole translation. transformers fixes
the norms' epsilon at 1e-6 while the OpenCLIP models were trained with 1e-5, so it is set here.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel

from manyeyes.model.encoders.base import Encoder, Normalization

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import ConvNextArchitecture, EncoderSpec

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
NOT_IN_TOWER = ("classifier.", "head.", "transformer.", "token_embedding.", "ln_final.", "text.")


class ConvNextEncoder(Encoder):
    """ConvNeXt last-stage features."""

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
        self.prune("layernorm")
        stages = self.tower.encoder.stages
        assert isinstance(stages, nn.ModuleList)
        self.drop_blocks(stages)

    def native(self, pixels: Tensor) -> Tensor:
        """Return the last stage's map (B, C, G, G)."""
        hidden_BCHW = self.tower.embeddings(pixels.to(self.dtype))
        for stage in self.tower.encoder.stages:
            hidden_BCHW = stage(hidden_BCHW)
        features: Tensor = hidden_BCHW.contiguous()
        return features

    def rename(self, key: str) -> str | None:
        """Accept transformers', timm's and OpenCLIP's names."""
        key = key.removeprefix("convnext.").removeprefix("visual.trunk.").removeprefix("trunk.")
        if key.startswith(NOT_IN_TOWER) or key in {"logit_scale", "positional_embedding"}:
            return None
        for pattern, replacement in TIMM_NAMES:
            key = re.sub(pattern, replacement, key)
        return None if key in self.unused_keys or key.startswith("visual.") else key
