"""DINOv2 and EfficientNet-Lite at tiny size: shapes, names, what trains; against other code."""

import dataclasses

import pytest
import torch
from model_kit import pictures
from safetensors.torch import save_file
from torch.nn import functional

from manyeyes.errors import UserError
from manyeyes.model.encoders import ENCODERS, encoder_from_spec
from manyeyes.model.encoders.dinov2 import Dinov2Architecture
from manyeyes.model.encoders.efficientnet import (
    EfficientNetArchitecture,
    EfficientNetStage,
    FixedBatchNorm,
    SamePadConv,
)
from manyeyes.model.encoders.siglip import SiglipArchitecture
from manyeyes.model.weights.loading import load_weights, save_weights

STAGES = (
    EfficientNetStage(repeats=1, kernel=3, stride=1, expansion=1, width=8),
    EfficientNetStage(repeats=2, kernel=5, stride=2, expansion=4, width=12),
    EfficientNetStage(repeats=1, kernel=3, stride=2, expansion=6, width=16),
)
SPECS = {
    "dinov2": dataclasses.replace(
        ENCODERS["dinov2-vit-s-14-112"],
        image_size=70,
        native_grid=5,
        width=24,
        architecture=Dinov2Architecture(
            depth=2, heads=2, mlp_ratio=2, patch=14, pretrained_image_size=56
        ),
    ),
    "siglip": dataclasses.replace(
        ENCODERS["siglip-so400m-14-384"],
        image_size=70,
        native_grid=5,
        width=24,
        architecture=SiglipArchitecture(
            depth=2, heads=2, mlp_width=48, patch=14, pretrained_image_size=56
        ),
    ),
    "efficientnet": dataclasses.replace(
        ENCODERS["efficientnet-lite0-128"],
        image_size=32,
        native_grid=8,
        width=12,
        feature_layer=-2,
        architecture=EfficientNetArchitecture(stem_width=8, stages=STAGES),
    ),
}


def build(name, **changes):
    spec = dataclasses.replace(SPECS[name], **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = encoder_from_spec(spec, grid=4, normalization="per_encoder")
        for key, value in encoder.state_dict().items():
            if value.is_floating_point():  # constructors leave gains at one and biases at zero
                value.add_(torch.rand(value.shape) * 0.1 + 0.1 * key.endswith("running_var"))
    return encoder


@pytest.mark.parametrize("name", SPECS)
def test_a_canvas_becomes_the_common_grid(name):
    encoder = build(name)
    with torch.no_grad():
        native = encoder.native(encoder.preprocess(pictures(2, size=60)))
        features = encoder(pictures(2, size=60))
    spec = encoder.spec
    assert native.shape == (2, spec.width, spec.native_grid, spec.native_grid)
    assert features.shape == (2, spec.width, 4, 4)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("name", SPECS)
def test_every_parameter_receives_a_gradient(name):
    encoder = build(name)
    encoder(pictures(1)).square().mean().backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", SPECS)
def test_weights_come_back_from_a_file(name, tmp_path):
    source, target = build(name), build(name)
    for value in target.state_dict().values():
        value.zero_()
    save_weights(source, tmp_path)
    load_weights(target, str(tmp_path))
    for key, loaded in target.state_dict().items():
        assert torch.equal(source.state_dict()[key], loaded), key


def test_dinov2_is_transformers_forward_without_the_class_token():
    encoder = build("dinov2")
    pixels = encoder.preprocess(pictures(2))
    with torch.no_grad():
        expected = encoder.tower(pixels).last_hidden_state[:, 1:]
        got = encoder.native(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_dinov2_at_its_own_size_uses_its_positions_as_they_are():
    encoder = build("dinov2", image_size=56, native_grid=4)
    pixels = encoder.preprocess(pictures(1))
    with torch.no_grad():
        expected = encoder.tower(pixels).last_hidden_state[:, 1:]
        got = encoder.native(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def dinov2_hub_names(encoder):
    """Return the tower under the names of the hub's checkpoints, by hand."""
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value",
             "o_proj": "output.dense"}  # fmt: skip
    tensors = {}
    for key, value in encoder.tower.state_dict().items():
        parts = [names.get(part, part) for part in key.split(".")]
        tensors[".".join(parts)] = value.clone()
    return {**tensors, "embeddings.mask_token": torch.zeros(1, 24)}


@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_dinov2_takes_the_names_of_the_hub(prefix, tmp_path):
    source, target = build("dinov2"), build("dinov2")
    for value in target.state_dict().values():
        value.zero_()
    tensors = {f"{prefix}{key}": value for key, value in dinov2_hub_names(source).items()}
    save_file({**tensors, "classifier.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    report = load_weights(target, str(tmp_path))
    assert sorted(report.dropped) == ["classifier.weight", f"{prefix}embeddings.mask_token"]
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def flat_names(encoder):
    """Return an EfficientNet tower under the flat names of the PyTorch port, by hand."""
    expanded = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv",
                "bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}  # fmt: skip
    separable = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv",
                 "bn2": "_bn2"}  # fmt: skip
    first = {"0": 0, "1": 1, "2": 3}
    tensors = {}
    for key, value in encoder.tower.state_dict().items():
        parts = key.split(".")
        if parts[0] == "blocks":
            _, stage, block, layer, tail = parts
            names = separable if stage == "0" else expanded
            name = f"_blocks.{first[stage] + int(block)}.{names[layer]}.{tail}"
        else:
            name = {"conv_stem": "_conv_stem", "bn1": "_bn0"}[parts[0]] + "." + parts[1]
        tensors[name] = value.clone()
    return tensors


def test_efficientnet_takes_the_flat_names_and_drops_what_is_behind_its_features(tmp_path):
    whole = build("efficientnet", feature_layer=-1, native_grid=4, width=16)
    target = build("efficientnet")
    for value in target.state_dict().values():
        value.zero_()
    tensors = {**flat_names(whole), "_conv_head.weight": torch.zeros(1), "_fc.bias": torch.ones(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    report = load_weights(target, str(tmp_path))
    behind = [key for key in tensors if key.startswith(("_blocks.3.", "_conv_head", "_fc"))]
    assert sorted(report.dropped) == sorted(behind)
    for key, value in target.tower.state_dict().items():
        assert torch.equal(whole.tower.state_dict()[key], value), key


def test_efficientnet_refuses_a_deeper_network(tmp_path):
    tensors = flat_names(build("efficientnet", feature_layer=-1, native_grid=4, width=16))
    tensors["_blocks.9._bn1.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_weights(build("efficientnet"), str(tmp_path))
    assert str(caught.value) == (
        f"The weights '{tmp_path}' are of another model: they hold '_blocks.9._bn1.weight', which "
        "is not part of this one."
    )


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 2, 8), (3, 2, 7), (5, 2, 8), (3, 1, 8)])
def test_padding_is_tensorflows_same(kernel, stride, side):
    convolution = SamePadConv(1, 1, kernel, stride)
    image = torch.randn(1, 1, side, side)
    outputs = -(-side // stride)
    missing = max((outputs - 1) * stride + kernel - side, 0)
    before = missing // 2
    canvas = torch.zeros(1, 1, side + missing, side + missing)
    canvas[..., before : before + side, before : before + side] = image
    expected = functional.conv2d(canvas, convolution.weight, stride=stride)
    assert expected.shape[-1] == outputs
    torch.testing.assert_close(convolution(image), expected)
    assert before == (0 if (kernel, stride, side) == (3, 2, 8) else before)


def test_statistics_stay_as_they_were_trained():
    encoder = build("efficientnet").train()
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    with torch.no_grad():
        alone, together = encoder(pictures(1)), encoder(pictures(4))
    torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in encoder.named_buffers())
    norms = [part for part in encoder.modules() if isinstance(part, FixedBatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
