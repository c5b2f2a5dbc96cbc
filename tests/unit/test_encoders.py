"""Every encoder: shapes, sizes, preprocessing, weights in and out."""

import dataclasses
import json

import pytest
import torch
from model_kit import pictures
from safetensors.torch import load_file, save_file
from torch.nn import functional

from manyeyes.config.recipe import EncoderSection
from manyeyes.errors import UserError
from manyeyes.model.encoders import ENCODERS, build_encoder, encoder_from_spec, find_spec
from manyeyes.model.encoders.base import resample_positions
from manyeyes.model.encoders.convnext import TIMM_NAMES
from manyeyes.model.encoders.pix2struct import flatten_patches, standardize
from manyeyes.model.encoders.spec import CLIP_MEAN, CLIP_STD, spec_from_json, spec_to_json
from manyeyes.model.rectangle import Rectangles
from manyeyes.model.weights.loading import find_safetensors, load_expert, load_weights, save_weights

TINY = [name for name in ENCODERS if name.endswith("-tiny")]
FULL = [name for name in ENCODERS if "-tiny" not in name]
# Parameters of the published towers, in millions (CLIP-L/14-336, OpenCLIP ConvNeXt-XXL, SAM-L,
# EVA-02-L of the detector, the encoder of Pix2Struct-L, SigLIP-so400m, DINOv2 ...).
REFERENCE_MILLIONS = {
    "clip-vit-l-14-448": 303.5,
    "clip-vit-l-14-336": 290.9,  # the block behind the features is not built
    "siglip-so400m-14-384": 413.0,  # 428.2 with the pooling head
    "dinov2-g-14-378": 1136.5,
    "dinov2-l-14-336": 304.4,
    "convnext-l-1024": 196.2,
    "convnext-l-1536-all-stages": 196.2,
    "convnext-xxl-1024": 843.4,
    "convnext-xxl-1024-all-stages": 843.4,
    "convnext-l-768-all-stages": 196.2,
    "sam-vit-l-1024": 308.3,
    "eva02-l-1024": 303.4,
    "pix2struct-l-1024": 512.8,
    "dinov2-vit-s-14-112": 22.06,
    "efficientnet-lite0-128": 0.7008,
    "eve-patch-embedding-672": 9.003,
    "eve-patch-embedding-1344": 9.003,
}


def build(name, grid=8, normalization="per_encoder"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return encoder_from_spec(find_spec(name), grid=grid, normalization=normalization)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("grid", [5, 8, 12])
def test_a_tiny_encoder_maps_any_canvas_to_the_common_grid(name, grid):
    encoder = build(name, grid)
    with torch.no_grad():
        features = encoder(pictures(2, size=96))
    assert features.shape == (2, encoder.spec.width, grid, grid)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("name", TINY)
def test_the_native_grid_is_the_one_the_table_states(name):
    encoder = build(name)
    with torch.no_grad():
        native = encoder.native(encoder.preprocess(pictures(1)))
    grid = encoder.spec.native_grid
    assert native.shape == (1, encoder.spec.width, grid, grid)


def test_tiny_encoders_disagree_about_size_and_grid():
    assert len({ENCODERS[name].image_size for name in TINY}) >= 3
    assert len({ENCODERS[name].native_grid for name in TINY}) >= 2


def test_the_tiny_encoders_together_stay_small():
    assert sum(count(build(name)) for name in TINY) < 2_000_000


@pytest.mark.parametrize("name", FULL)
def test_a_full_size_encoder_has_the_published_size_and_shapes(name):
    with torch.device("meta"):
        encoder = build(name, grid=32)
        features = encoder(torch.zeros(1, 3, 1024, 1024, dtype=torch.uint8))
    assert count(encoder) / 1e6 == pytest.approx(REFERENCE_MILLIONS[name], rel=0.01)
    assert features.shape == (1, encoder.spec.width, 32, 32)


def test_all_stages_stand_side_by_side_finest_first_each_resized_for_itself():
    encoder = build("convnext-tiny-all-stages", grid=18)
    canvas = torch.randint(0, 256, (1, 3, 144, 144), dtype=torch.uint8)
    features = encoder(canvas)
    assert features.shape == (1, 168, 18, 18)
    hidden = encoder.tower.embeddings(encoder.preprocess(canvas))
    first = encoder.tower.encoder.stages[0](hidden)
    resized = torch.nn.functional.interpolate(first, size=(18, 18), mode="bilinear")
    torch.testing.assert_close(features[:, :24], resized)


def test_the_full_mixtures_have_eagles_widths():
    widths = {name: ENCODERS[name].width for name in FULL}
    four = ["clip-vit-l-14-336", "convnext-xxl-1024", "eva02-l-1024", "pix2struct-l-1024"]
    assert sum(widths[name] for name in four) == 6656
    assert sum(widths[name] for name in [*four, "sam-vit-l-1024"]) == 7680


@pytest.mark.parametrize("name", ENCODERS)
def test_a_spec_survives_json(name):
    spec = ENCODERS[name]
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


def test_an_unknown_spec_is_answered_with_the_table_and_the_nearest():
    with pytest.raises(UserError) as caught:
        build_encoder(EncoderSection(name="clip", spec="clip-tinny", weights="random"), grid=8)
    assert str(caught.value) == (
        "Unknown encoder spec 'clip-tinny': known are clip-tiny, clip-vit-l-14-336, "
        "clip-vit-l-14-448, convnext-l-1024, convnext-l-1536-all-stages, convnext-l-768-all-stages, "
        "convnext-tiny, convnext-tiny-all-stages, convnext-xxl-1024, convnext-xxl-1024-all-stages, "
        "dinov2-g-14-378, dinov2-l-14-336, dinov2-vit-s-14-112, efficientnet-lite0-128, "
        "eva02-l-1024, eva02-tiny, eve-patch-embedding-1344, eve-patch-embedding-672, "
        "eve-patch-embedding-tiny, pix2struct-l-1024, pix2struct-tiny, sam-tiny, sam-vit-l-1024, "
        "siglip-so400m-14-384; did you mean 'clip-tiny'?"
    )


@pytest.mark.parametrize("name", [n for n in TINY if n != "pix2struct-tiny"])
def test_each_tower_is_normalised_as_it_was_trained(name):
    encoder = build(name)
    grey = torch.full((1, 3, 128, 128), 0.5)
    got = encoder.preprocess(grey)[0, :, 3, 3]
    expected = (0.5 - torch.tensor(encoder.spec.mean)) / torch.tensor(encoder.spec.std)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", [n for n in TINY if n != "pix2struct-tiny"])
def test_shared_normalisation_gives_every_tower_clips_statistics(name):
    grey = torch.full((1, 3, 128, 128), 0.5)
    got = build(name, normalization="shared").preprocess(grey)[0, :, 3, 3]
    torch.testing.assert_close(got, (0.5 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD))


def test_shared_normalisation_leaves_pix2struct_alone():
    canvas = pictures(2)
    own = build("pix2struct-tiny").preprocess(canvas)
    assert torch.equal(build("pix2struct-tiny", normalization="shared").preprocess(canvas), own)


@pytest.mark.parametrize("name", TINY)
def test_bytes_and_fractions_are_the_same_picture(name):
    encoder, canvas = build(name), pictures(1)
    torch.testing.assert_close(encoder.preprocess(canvas), encoder.preprocess(canvas / 255.0))


@pytest.mark.parametrize("name", TINY)
def test_an_image_is_encoded_alike_alone_and_in_a_batch(name):
    encoder, canvas = build(name), pictures(3)
    with torch.no_grad():
        torch.testing.assert_close(encoder(canvas)[1:2], encoder(canvas[1:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_of_a_tower_receives_a_gradient(name):
    encoder = build(name)
    if hasattr(encoder, "tokens"):  # its class vector and row ends are in no map
        side = encoder.spec.native_grid
        laid_out = Rectangles.of(None, 1, pieces=encoder.pieces, side=side)
        found = encoder.tokens(pictures(1), laid_out)
    else:
        found = encoder(pictures(1))
    found.square().mean().backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", TINY)
def test_an_encoder_has_no_buffer_that_a_checkpoint_would_lose(name):
    encoder = build(name)
    lost = {key for key, _ in encoder.named_buffers()} - set(encoder.state_dict())
    assert lost <= {"tower.embeddings.position_ids"}  # transformers' own, not read on our path


def test_eagles_resize_aligns_corners():
    encoder = build("convnext-tiny", grid=8)
    native = torch.randn(1, encoder.spec.width, encoder.spec.native_grid, encoder.spec.native_grid)
    assert encoder.spec.native_grid != 8
    resized = encoder.to_grid(native)
    expected = functional.interpolate(native, size=(8, 8), mode="bilinear", align_corners=True)
    assert torch.equal(resized, expected)
    torch.testing.assert_close(resized[..., 0, 0], native[..., 0, 0])
    torch.testing.assert_close(resized[..., -1, -1], native[..., -1, -1])


def test_an_equal_grid_is_not_touched():
    native = torch.randn(1, 96, 8, 8)
    assert build("clip-tiny", grid=8).to_grid(native) is native


def test_clip_drops_the_class_token_and_matches_transformers_blocks():
    encoder = build("clip-tiny")
    pixels = encoder.preprocess(pictures(1))
    tower = encoder.tower
    with torch.no_grad():
        hidden = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        hidden = hidden + tower.embeddings.position_embedding.weight[1:]
        hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(hidden)).last_hidden_state
        assert torch.equal(encoder.native(pixels).flatten(2).transpose(1, 2), hidden)


def test_feature_layer_drops_the_blocks_behind_it():
    spec = dataclasses.replace(ENCODERS["clip-tiny"], feature_layer=-2)
    encoder = encoder_from_spec(spec, grid=8, normalization="per_encoder")
    assert len(encoder.tower.encoder.layers) == spec.architecture.depth - 1


def test_clip_at_another_size_interpolates_its_positions():
    spec = dataclasses.replace(ENCODERS["clip-tiny"], image_size=140, native_grid=10)
    encoder = encoder_from_spec(spec, grid=8, normalization="per_encoder")
    with torch.no_grad():
        assert encoder(pictures(1)).shape == (1, 96, 8, 8)


def test_resampled_positions_keep_a_constant_table_and_the_same_size():
    table = torch.randn(16, 3)
    assert resample_positions(table, 4, antialias=True) is table
    constant = torch.ones(16, 3) * 0.25
    torch.testing.assert_close(
        resample_positions(constant, 7, antialias=False), torch.full((49, 3), 0.25)
    )


def test_sams_neck_is_the_first_half_of_transformers_neck():
    encoder = build("sam-tiny")
    keys = [key for key in encoder.tower.state_dict() if ".neck." in key]
    prefix = "vision_encoder.neck"
    assert keys == [f"{prefix}.conv1.weight", f"{prefix}.layer_norm1.weight",
                    f"{prefix}.layer_norm1.bias"]  # fmt: skip


def test_sam_unshuffles_squares_into_channels():
    encoder = build("sam-tiny")
    pixels = encoder.preprocess(pictures(1))
    with torch.no_grad():
        native = encoder.native(pixels)
        folded = functional.pixel_shuffle(native, 2)
    assert folded.shape == (1, 24, 16, 16)


@pytest.mark.parametrize(("side", "grid"), [(96, 8), (100, 11), (160, 13)])
def test_patches_equal_transformers_image_processor(side, grid):
    from transformers.models.pix2struct.image_processing_pil_pix2struct import (
        Pix2StructImageProcessorPil,
    )

    canvas = pictures(2, size=side)
    processor = Pix2StructImageProcessorPil(
        patch_size={"height": 12, "width": 12}, max_patches=grid * grid + 3
    )
    expected = processor([image.numpy() for image in canvas], return_tensors="pt")
    pixels = functional.interpolate(
        standardize(canvas.float()), size=(grid * 12, grid * 12), mode="bilinear", antialias=True
    )
    got = flatten_patches(pixels, 12)
    patches = expected["flattened_patches"]
    torch.testing.assert_close(got, patches[:, : grid * grid], rtol=1e-4, atol=1e-4)
    assert not patches[:, grid * grid :].any()


def test_the_table_cuts_1024_pixels_as_eagle_does():
    spec = ENCODERS["pix2struct-l-1024"]
    assert int((2048 * (16 / 1024) ** 2) ** 0.5 * 1024 / 16) == spec.native_grid == 45
    assert spec.image_size == 45 * spec.architecture.patch


def test_a_blank_image_is_zeros_and_not_noise():
    blank = torch.full((1, 3, 32, 32), 200.0)
    assert standardize(blank).abs().max() < 1e-3


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.float16, None])
def test_weights_come_back_from_a_file(name, dtype, tmp_path):
    source, target = build(name), build(name)
    for parameter in target.parameters():
        parameter.data.zero_()
    save_weights(source, tmp_path, dtype)
    report = load_weights(target, str(tmp_path))
    assert report.num_parameters == count(source)
    for key, loaded in target.state_dict().items():
        saved = source.state_dict()[key]
        assert torch.equal(saved if dtype is None else saved.to(dtype).float(), loaded), key


def test_random_weights_load_nothing():
    encoder = build("clip-tiny")
    before = encoder.state_dict()["tower.pre_layrnorm.weight"].clone()
    assert load_weights(encoder, "random").num_tensors == 0
    assert torch.equal(encoder.state_dict()["tower.pre_layrnorm.weight"], before)


def published(name):
    """Return the tower's tensors under the names a public checkpoint has, with its other parts."""
    tower = build(name).tower.state_dict()
    other = torch.zeros(1)
    if name == "clip-tiny":
        extra = {"vision_model.embeddings.class_embedding": other, "logit_scale": other,
                 "vision_model.post_layernorm.weight": other, "text_model.x": other,
                 "vision_model.embeddings.position_ids": other}  # fmt: skip
        return {**{f"vision_model.{key}": value for key, value in tower.items()}, **extra}
    if name == "sam-tiny":
        extra = ["vision_encoder.neck.conv2.weight", "mask_decoder.x", "prompt_encoder.x",
                 "shared_image_embedding.positional_embedding"]  # fmt: skip
        return {**tower, **dict.fromkeys(extra, other)}
    if name == "pix2struct-tiny":
        return {**{f"encoder.{key}": value for key, value in tower.items()}, "decoder.x": other}
    if name == "eva02-tiny":
        extra = ["backbone.net.blocks.0.attn.rope.freqs_cos", "backbone.net.rope_glb.freqs_sin",
                 "backbone.simfp_2.0.weight", "roi_heads.x", "proposal_generator.x"]  # fmt: skip
        return {
            **{f"backbone.net.{key}": value for key, value in tower.items()},
            **dict.fromkeys(extra, other),
        }
    extra = ["visual.head.proj.weight", "logit_scale", "transformer.x"]
    return {
        **{to_timm(key): value for key, value in tower.items()},
        **dict.fromkeys(extra, other),
    }


def to_timm(key):
    """Name a ConvNeXt tensor as OpenCLIP does, by hand and not by ``TIMM_NAMES`` backwards."""
    parts = key.split(".")
    if parts[0] == "embeddings":
        return f"visual.trunk.stem.{0 if parts[1] == 'patch_embeddings' else 1}.{parts[2]}"
    stage, kind, index, *rest = parts[2:]
    if kind == "downsampling_layer":
        return ".".join(["visual.trunk.stages", stage, "downsample", index, *rest])
    names = {"dwconv": "conv_dw", "layernorm": "norm", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2",
             "layer_scale_parameter": "gamma"}  # fmt: skip
    tail = [names[rest[0]], *rest[1:]]
    return ".".join(["visual.trunk.stages", stage, "blocks", index, *tail])


@pytest.mark.parametrize("name", [name for name in TINY if not name.startswith("eve-")])
def test_a_whole_published_model_loads_into_its_tower(name, tmp_path):
    tensors = {key: value.clone() for key, value in published(name).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    target = build(name)
    report = load_weights(target, str(tmp_path))
    assert report.num_tensors == len(target.tower.state_dict())
    assert len(report.dropped) == len(tensors) - report.num_tensors > 0
    for key, value in build(name).tower.state_dict().items():
        assert torch.equal(target.tower.state_dict()[key], value)


def test_the_timm_table_names_each_kind_of_tensor_once():
    assert len({pattern for pattern, _ in TIMM_NAMES}) == len(TIMM_NAMES) == 8


def test_weights_in_shards_load_by_their_index(tmp_path):
    source = build("clip-tiny")
    save_weights(source, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    weight_map = {}
    for index, key in enumerate(tensors):
        weight_map[key] = f"part-{index % 2}.safetensors"
    for part in sorted(set(weight_map.values())):
        shard = {key: tensors[key] for key in tensors if weight_map[key] == part}
        save_file(shard, tmp_path / part)
    index_file = tmp_path / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": weight_map}))
    assert load_weights(build("clip-tiny"), str(tmp_path)).num_tensors == len(tensors)


def test_an_expert_loads_from_a_mixture_by_name(tmp_path):
    source, target = build("clip-tiny"), build("clip-tiny")
    source.tower.pre_layrnorm.weight.data.fill_(3.0)
    mixture = {f"encoders.clip.{key}": value for key, value in source.state_dict().items()}
    mixture |= {"encoders.clip2.x": torch.zeros(1), "projector.0.weight": torch.zeros(1)}
    save_file(mixture, tmp_path / "model.safetensors")
    load_expert(target, "clip", tmp_path)
    assert (target.tower.pre_layrnorm.weight == 3.0).all()
    with pytest.raises(UserError) as caught:
        load_expert(target, "sam", tmp_path)
    assert str(caught.value) == (
        f"The weights '{tmp_path} (encoders.sam.*)' are of another model: 52 of 52 tensors are "
        "missing, first 'tower.embeddings.patch_embedding.weight'."
    )


def rewrite(folder, **tensors):
    path = folder / "model.safetensors"
    save_file({**load_file(path), **tensors}, path)


def replace_by_sam(folder):
    (folder / "model.safetensors").unlink()
    save_weights(build("sam-tiny"), folder)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


BREAK = {
    "truncated": truncate,
    "not safetensors": lambda folder: (folder / "model.safetensors").write_bytes(b"PK, not ours"),
    "foreign": replace_by_sam,
    "left over": lambda folder: rewrite(folder, **{"encoder.layers.9.x": torch.zeros(1)}),
    "shape": lambda folder: rewrite(
        folder, **{"embeddings.patch_embedding.weight": torch.zeros(96, 3, 7, 7)}
    ),
    "pickle": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "empty": lambda folder: (folder / "model.safetensors").unlink(),
}


def broken(kind, folder):
    """Break a folder of weights in one way; return the reference to give."""
    save_weights(build("clip-tiny"), folder)
    if kind in BREAK:
        BREAK[kind](folder)
        return str(folder)
    return str(folder / {"pickle file": "weights.pth", "missing": "elsewhere"}[kind])


ERRORS = {
    "foreign": "The weights '{at}' are of another model: 52 of 52 tensors are missing, first "
    "'embeddings.patch_embedding.weight'.",
    "left over": "The weights '{at}' are of another model: they hold 'encoder.layers.9.x', "
    "which is not part of this one.",
    "shape": "The weights '{at}' are of another model: 'embeddings.patch_embedding.weight' has "
    "shape (96, 3, 7, 7) instead of (96, 3, 14, 14).",
    "pickle": "{at} has only pickled weights (pytorch_model.bin), and reading them can run code: "
    "convert them with manyeyes import-weights.",
    "pickle file": "{at}/weights.pth is a pickle, and reading one can run code: convert it with "
    "manyeyes import-weights.",
    "empty": "There are no weights in {at}: it has no model.safetensors.",
    "missing": "There are no weights at {at}/elsewhere: the path does not exist.",
}


@pytest.mark.parametrize("kind", ERRORS)
def test_wrong_weights_are_refused_in_one_sentence(kind, tmp_path):
    reference = broken(kind, tmp_path)
    with pytest.raises(UserError) as caught:
        load_weights(build("clip-tiny"), reference)
    assert str(caught.value) == ERRORS[kind].format(at=tmp_path)


@pytest.mark.parametrize("kind", ["truncated", "not safetensors"])
def test_broken_files_are_refused_in_one_sentence(kind, tmp_path):
    reference = broken(kind, tmp_path)
    with pytest.raises(UserError) as caught:
        load_weights(build("clip-tiny"), reference)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/model.safetensors is not a whole safetensors file (")
    assert text.endswith("): copy or build it again.")
    assert "\n" not in text


def test_an_unknown_zoo_name_is_refused():
    with pytest.raises(UserError, match=r"^Unknown part of the zoo 'clip-tinny': known are "):
        find_safetensors("zoo:clip-tinny")


@pytest.mark.parametrize("reference", ["zoo:../weights", "zoo:", "zoo:.", "zoo:a/b"])
def test_a_zoo_name_cannot_leave_the_zoo(reference):
    with pytest.raises(UserError):
        find_safetensors(reference)


def test_a_hub_model_that_is_not_cached_is_refused(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        load_weights(build("clip-tiny"), "nobody/no-such-model")
    text = str(caught.value)
    assert text.startswith("Cannot get model.safetensors of 'nobody/no-such-model': ")
    assert "\n" not in text


def test_a_refused_load_leaves_the_module_as_it_was(tmp_path):
    encoder = build("clip-tiny")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(encoder, broken("left over", tmp_path))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
