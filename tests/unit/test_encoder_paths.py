"""The ways through the towers, against transformers' own forward and against plain dense loops."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from model_kit import pictures
from safetensors.torch import save_file
from torch.nn import functional

from manyeyes.config.recipe import EncoderSection
from manyeyes.errors import UserError
from manyeyes.model.encoders import ENCODERS, encoder_from_spec, section_spec
from manyeyes.model.encoders.dinov2 import Dinov2Architecture
from manyeyes.model.encoders.eva02 import Eva02Architecture
from manyeyes.model.encoders.registry import FAMILIES, find_family
from manyeyes.model.encoders.siglip import SiglipArchitecture
from manyeyes.model.weights.loading import load_weights

SIGLIP = dataclasses.replace(
    ENCODERS["siglip-so400m-14-384"],
    image_size=84,
    native_grid=6,
    width=24,
    architecture=SiglipArchitecture(
        depth=2, heads=2, mlp_width=48, patch=14, pretrained_image_size=56
    ),
)
GIANT = dataclasses.replace(
    ENCODERS["dinov2-g-14-378"],
    image_size=56,
    native_grid=4,
    width=24,
    architecture=Dinov2Architecture(
        depth=2, heads=2, mlp_ratio=4, patch=14, pretrained_image_size=56, swiglu=True
    ),
)


def build(spec, grid=8):
    """Build with no parameter at its initial zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = encoder_from_spec(spec, grid=grid, normalization="per_encoder")
        for parameter in encoder.parameters():
            parameter.data.add_(torch.randn(parameter.shape) * 0.05)
    return encoder.eval()


def clip(side, *, class_token, layer):
    spec = ENCODERS["clip-tiny"]
    architecture = dataclasses.replace(spec.architecture.settled(), class_token=class_token)
    return dataclasses.replace(
        spec,
        image_size=side,
        native_grid=side // 14,
        feature_layer=layer,
        architecture=architecture,
    )


def test_clip_with_the_class_token_is_llavas_second_to_last_hidden_state():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    encoder = build(clip(112, class_token=True, layer=-2))
    pixels = encoder.preprocess(pictures(2))
    config = CLIPVisionConfig(**{**encoder.tower.config.to_dict(), "num_hidden_layers": 3})
    whole = CLIPVisionModel(config).eval()
    answer = whole.load_state_dict(encoder.tower.state_dict(), strict=False)
    assert all(".2." in key or "post_layernorm" in key for key in answer.missing_keys)
    with torch.no_grad():
        states = whole(pixels, output_hidden_states=True).hidden_states
        got = encoder.native(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, states[-2][:, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [140, 224])
def test_clip_interpolates_positions_as_transformers_does(side):
    encoder = build(clip(side, class_token=True, layer=-1))
    pixels = encoder.preprocess(pictures(1))
    embeddings = encoder.tower.embeddings
    with torch.no_grad():
        expected = embeddings(pixels, interpolate_pos_encoding=True)
        expected = encoder.tower.pre_layrnorm(expected)
        for block in encoder.tower.encoder.layers:
            expected = block(expected, None)
        got = encoder.native(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_eagles_clip_interpolates_with_antialiasing_which_is_another_kernel():
    encoder = build(clip(140, class_token=False, layer=-1))
    pixels = encoder.preprocess(pictures(1))
    tower = encoder.tower
    table = tower.embeddings.position_embedding.weight[1:].view(1, 8, 8, -1).permute(0, 3, 1, 2)
    outputs = []
    with torch.no_grad():
        for antialias in (True, False):
            grid = functional.interpolate(table, size=(10, 10), mode="bicubic", antialias=antialias)
            hidden = tower.embeddings.patch_embedding(pixels) + grid
            hidden = tower.pre_layrnorm(hidden.flatten(2).transpose(1, 2))
            for block in tower.encoder.layers:
                hidden = block(hidden, None)
            outputs.append(hidden)
        got = encoder.native(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, outputs[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, outputs[1], rtol=1e-2, atol=1e-3)


def test_positions_are_interpolated_in_float32_whatever_the_weights_are():
    encoder = build(clip(140, class_token=False, layer=-1)).to(torch.bfloat16)
    table = encoder.tower.embeddings.position_embedding.weight[1:]
    from manyeyes.model.encoders.base import resample_positions

    exact = resample_positions(table.float(), 10, antialias=True)
    assert torch.equal(resample_positions(table, 10, antialias=True), exact.to(torch.bfloat16))


def test_siglip_is_transformers_forward_without_the_pooling_head():
    encoder = build(SIGLIP)
    pixels = encoder.preprocess(pictures(2))
    tower = encoder.tower
    with torch.no_grad():
        expected = tower.embeddings(pixels, interpolate_pos_encoding=True)
        expected = tower.encoder(inputs_embeds=expected).last_hidden_state
        expected = tower.post_layernorm(expected)
        got = encoder.native(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not [key for key in tower.state_dict() if key.startswith("head.")]


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_siglip_takes_the_names_of_the_hub(prefix, tmp_path):
    source, target = build(SIGLIP), build(SIGLIP)
    for parameter in target.parameters():
        parameter.data.zero_()
    tensors = {f"{prefix}{key}": value for key, value in source.tower.state_dict().items()}
    other = [f"{prefix}head.probe", "text_model.final_layer_norm.bias", "logit_bias", "logit_scale"]
    rest = {key: torch.zeros(1) for key in other}
    save_file({**tensors, **rest}, tmp_path / "model.safetensors")
    assert sorted(load_weights(target, str(tmp_path)).dropped) == sorted(other)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_the_giants_gated_mlp_is_published_as_one_tensor(tmp_path):
    source, target = build(GIANT), build(GIANT)
    for parameter in target.parameters():
        parameter.data.zero_()
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value",
             "o_proj": "output.dense", "down_proj": "weights_out"}  # fmt: skip
    state, tensors = source.tower.state_dict(), {}
    for key in state:
        if ".up_proj." in key:
            continue
        name = ".".join(names.get(part, part) for part in key.split("."))
        parts = [state[key]]
        if ".gate_proj." in key:
            name = name.replace("gate_proj", "weights_in")
            parts.append(state[key.replace("gate_proj", "up_proj")])
        tensors[name] = torch.cat(parts)
    assert tensors["encoder.layer.0.mlp.weights_in.weight"].shape == (128, 24)
    save_file(tensors, tmp_path / "model.safetensors")
    load_weights(target, str(tmp_path))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_the_gated_mlp_gates_with_its_first_half():
    mlp = build(GIANT).tower.encoder.layer[0].mlp
    hidden = torch.randn(3, 24)
    gate = functional.silu(mlp.gate_proj(hidden))
    torch.testing.assert_close(mlp(hidden), mlp.down_proj(gate * mlp.up_proj(hidden)))


def sam_attention(attention, cells):
    """Attend within one square of cells (S, S, C) by its definition, query by query."""
    side, _, width = cells.shape
    heads = attention.num_attention_heads
    head = width // heads
    qkv = attention.qkv(cells.reshape(side * side, width)).view(side, side, 3, heads, head)
    output = torch.zeros(side, side, heads, head)
    for row in range(side):
        for column in range(side):
            query = qkv[row, column, 0]
            scores = torch.einsum("hd,ijhd->hij", query, qkv[:, :, 1]) / math.sqrt(head)
            for other in range(side):
                down = attention.rel_pos_h[row - other + side - 1]
                right = attention.rel_pos_w[column - other + side - 1]
                scores[:, other, :] += (query @ down)[:, None]
                scores[:, :, other] += (query @ right)[:, None]
            weights = scores.flatten(1).softmax(-1).view_as(scores)
            output[row, column] = torch.einsum("hij,ijhd->hd", weights, qkv[:, :, 2])
    return attention.proj(output.reshape(side, side, width))


def dense_block(block, attend, normed, cells, window):
    """Run one block on a map (S, S, C): attention in windows (0: over all), then the MLP."""
    side = cells.shape[0]
    step = window or side
    mixed = torch.zeros_like(cells)
    for top in range(0, side, step):
        for left in range(0, side, step):
            square = torch.zeros(step, step, cells.shape[2])
            part = normed(cells[top : top + step, left : left + step])
            square[: part.shape[0], : part.shape[1]] = part
            found = attend(square)[: part.shape[0], : part.shape[1]]
            mixed[top : top + step, left : left + step] = found
    cells = cells + mixed
    return cells + block.mlp(cells if not hasattr(block, "norm2") else block.norm2(cells))


@pytest.mark.parametrize("window", [8, 6])
def test_sam_equals_a_dense_loop_over_its_windows(window):
    """A window of 6 does not divide the 16 cells: the last one is filled up with zeros."""
    spec = ENCODERS["sam-tiny"]
    architecture = dataclasses.replace(spec.architecture.settled(), window=window)
    encoder = build(dataclasses.replace(spec, architecture=architecture))
    pixels = encoder.preprocess(pictures(1))
    tower = encoder.tower.vision_encoder
    with torch.no_grad():
        cells = (tower.patch_embed(pixels) + tower.pos_embed)[0]
        for index, block in enumerate(tower.layers):
            size = 0 if index in architecture.global_blocks else window
            layer = torch.nn.Module()
            layer.mlp, layer.norm2 = block.mlp, block.layer_norm2
            attend = lambda square, block=block: sam_attention(block.attn, square)  # noqa: E731
            cells = dense_block(layer, attend, block.layer_norm1, cells, size)
        neck = cells @ tower.neck.conv1.weight[:, :, 0, 0].T
        mean, variance = neck.mean(-1, keepdim=True), neck.var(-1, keepdim=True, correction=0)
        norm = tower.neck.layer_norm1
        neck = (neck - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias
        got = encoder.native(pixels)[0]
    for row, column, dy, dx in [(0, 0, 0, 0), (3, 5, 1, 0), (7, 7, 1, 1), (2, 6, 0, 1)]:
        channel = got[2 * dy + dx :: 4, row, column]  # unshuffled: channel * 4 + dy * 2 + dx
        expected = neck[2 * row + dy, 2 * column + dx]
        torch.testing.assert_close(channel, expected, rtol=1e-3, atol=1e-4)


def eva_attention(attention, cells):
    """Attend within one square of cells (S, S, C), every score by complex rotation."""
    side, _, width = cells.shape
    heads, head = attention.heads, attention.head_width
    tokens = cells.reshape(-1, width)
    query = functional.linear(tokens, attention.q_proj.weight, attention.q_bias)
    key = functional.linear(tokens, attention.k_proj.weight)
    value = functional.linear(tokens, attention.v_proj.weight, attention.v_bias)
    frequency = 10000.0 ** (-torch.arange(0, head // 2, 2) / (head // 2))
    places = torch.arange(side) / side * 16
    rows = (places[:, None] * frequency).repeat_interleave(side, 0)
    columns = (places[:, None] * frequency).repeat(side, 1)
    turn = torch.polar(torch.ones(side * side, head // 2), torch.cat([rows, columns], dim=1))
    parts = []
    for number in range(heads):
        part = slice(number * head, number * head + head)
        one = torch.view_as_complex(query[:, part].reshape(-1, head // 2, 2)) * turn
        two = torch.view_as_complex(key[:, part].reshape(-1, head // 2, 2)) * turn
        scores = (one @ two.conj().T).real / math.sqrt(head)
        parts.append(scores.softmax(-1) @ value[:, part])
    return attention.proj(torch.cat(parts, -1)).view(side, side, width)


@pytest.mark.parametrize("window", [4, 3])
def test_eva02_equals_a_dense_loop_over_its_windows(window):
    spec = ENCODERS["eva02-tiny"]
    architecture = Eva02Architecture(
        depth=3, heads=3, patch=16, window=window, global_blocks=(1,), pretrained_image_size=64
    )
    encoder = build(dataclasses.replace(spec, architecture=architecture))
    pixels = encoder.preprocess(pictures(1))
    tower = encoder.tower
    with torch.no_grad():
        table = tower.pos_embed[:, 1:].view(1, 4, 4, -1).permute(0, 3, 1, 2)
        table = functional.interpolate(table, size=(8, 8), mode="bicubic", align_corners=False)
        cells = (tower.patch_embed(pixels) + table.permute(0, 2, 3, 1))[0]
        for index, block in enumerate(tower.blocks):
            attend = lambda square, block=block: eva_attention(block.attn, square)  # noqa: E731
            cells = dense_block(block, attend, block.norm1, cells, 0 if index == 1 else window)
        got = encoder.native(pixels)[0].permute(1, 2, 0)
    torch.testing.assert_close(got, cells, rtol=1e-3, atol=1e-4)


def test_released_runs_the_tower_at_the_side_it_was_trained_at():
    section = EncoderSection(name="clip", spec="clip-vit-l-14-448", weights="random", released=336)
    spec = section_spec(section)
    assert (spec.image_size, spec.native_grid) == (336, 24)
    with torch.device("meta"):
        encoder = encoder_from_spec(spec, grid=32, normalization="per_encoder")
        assert encoder(torch.zeros(1, 3, 1024, 1024)).shape == (1, 1024, 32, 32)
    plain = section.model_copy(update={"released": None})
    assert section_spec(plain) == ENCODERS["clip-vit-l-14-448"]


@pytest.mark.parametrize(
    ("spec", "released", "text"),
    [
        (
            "clip-vit-l-14-448",
            340,
            "model.encoders: released of x is 340, which is not a multiple of its patch of 14 "
            "pixels: 336 or 350 would be.",
        ),
        (
            "sam-vit-l-1024",
            512,
            "model.encoders: x sets released, but sam-vit-l-1024 runs at 1024 pixels only: leave "
            "released out.",
        ),
    ],
    ids=["no multiple", "one side only"],
)
def test_a_released_side_that_cannot_be_is_refused(spec, released, text):
    section = EncoderSection(name="x", spec=spec, weights="random", released=released)
    with pytest.raises(UserError) as caught:
        section_spec(section)
    assert str(caught.value) == text


def test_reading_the_table_imports_no_torch():
    program = (
        "import sys; from manyeyes.model.encoders.registry import ENCODERS, find_spec; "
        "find_spec('clip-tiny').family; print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout == "False\n", answer.stderr


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_holds_its_section_and_its_class(name):
    file = __import__(f"manyeyes.model.encoders.{name}", fromlist=["_"])
    family = FAMILIES[name]
    assert getattr(file, family.section).family == name
    assert hasattr(getattr(file, family.encoder), "native")


def test_an_unknown_family_in_a_checkpoint_is_answered_with_the_table():
    with pytest.raises(UserError) as caught:
        find_family("clipp")
    assert str(caught.value) == (
        "Unknown family of encoders 'clipp': known are clip, convnext, dinov2, efficientnet, "
        "eva02, patch_embedding, pix2struct, sam, siglip; did you mean 'clip'?"
    )
