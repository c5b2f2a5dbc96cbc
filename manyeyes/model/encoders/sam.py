"""SAM's image encoder: ViT with window and global blocks, a two-step neck, pixel unshuffle.

Eagle replaces SAM's four-step neck (1x1 conv, norm, 3x3 conv, norm) by a fresh 1x1 conv and norm,
then folds each 2 x 2 square of cells into channels. Its new neck is random, frozen in stage 1 and
not saved with the projector, so stage 2 starts from another random neck than the projector was
aligned to. Here the neck *is* the first half of SAM's own (``neck.conv1``, ``neck.layer_norm1``):
pretrained, saved and loaded with the tower. The tower is transformers' ``SamVisionModel``.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.nn import functional
from transformers import SamVisionConfig, SamVisionModel

from manyeyes.model.encoders.base import Encoder, Normalization
from manyeyes.model.encoders.spec import Architecture

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import EncoderSpec

PREFIX = "vision_encoder."
NOT_IN_TOWER = ("mask_decoder.", "prompt_encoder.", "shared_image_embedding.")


@dataclass(frozen=True)
class SamArchitecture(Architecture):
    """SAM's image encoder (arXiv:2304.02643): a ViT with windows, global blocks and a neck."""

    hidden_width: int
    depth: int
    heads: int
    patch: int
    window: int
    global_blocks: tuple[int, ...]
    neck_width: int
    unshuffle: int = 2
    """Side of the square of cells folded into channels (Eagle uses 2)."""
    family: Literal["sam"] = "sam"


class SamEncoder(Encoder):
    """SAM features after the neck, unshuffled."""

    tower: SamVisionModel

    def __init__(
        self,
        spec: EncoderSpec,
        architecture: SamArchitecture,
        grid: int,
        normalization: Normalization,
    ) -> None:
        super().__init__(spec, grid, normalization)
        self.unshuffle = architecture.unshuffle
        self.tower = SamVisionModel(
            SamVisionConfig(
                hidden_size=architecture.hidden_width,
                output_channels=architecture.neck_width,
                num_hidden_layers=architecture.depth,
                num_attention_heads=architecture.heads,
                image_size=spec.image_size,
                patch_size=architecture.patch,
                window_size=architecture.window,
                global_attn_indexes=list(architecture.global_blocks),
                # transformers' default of 1e-10 leaves a tower that is not loaded at zero.
                initializer_range=0.02,
            )
        )
        self.prune("vision_encoder.neck.conv2", "vision_encoder.neck.layer_norm2")
        blocks = self.tower.vision_encoder.layers
        assert isinstance(blocks, nn.ModuleList)
        self.drop_blocks(blocks)

    def native(self, pixels: Tensor) -> Tensor:
        """Return (B, neck_width * unshuffle**2, G, G)."""
        encoder = self.tower.vision_encoder
        hidden_BHWC = encoder.patch_embed(pixels.to(self.dtype)) + encoder.pos_embed
        for block in encoder.layers:
            hidden_BHWC = block(hidden_BHWC)
        hidden_BCHW = encoder.neck.conv1(hidden_BHWC.permute(0, 3, 1, 2))
        hidden_BCHW = encoder.neck.layer_norm1(hidden_BCHW)
        return functional.pixel_unshuffle(hidden_BCHW, self.unshuffle)

    def rename(self, key: str) -> str | None:
        """Accept the tower alone, with or without ``vision_encoder.``, or a whole SAM."""
        if not key.startswith((PREFIX, *NOT_IN_TOWER)):
            key = f"{PREFIX}{key}"
        return None if key.startswith(NOT_IN_TOWER) or key in self.unused_keys else key
