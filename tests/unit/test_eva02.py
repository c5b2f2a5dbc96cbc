"""Our EVA-02: official names, rotary positions, windows, and attention by its definition."""

import math

import pytest
import torch
from model_kit import pictures
from torch.nn import functional

from manyeyes.model.encoders import encoder_from_spec, find_spec
from manyeyes.model.encoders.eva02 import (
    Attention,
    Block,
    Eva02Architecture,
    Eva02Backbone,
    SwiGLU,
    merge_windows,
    partition_windows,
    rotary_tables,
    rotate,
)

CPU = torch.device("cpu")
# The parameters of one block of EVA-02-det's backbone, as the official checkpoint names them
# (its rotary buffers left out), with their shapes at width C and MLP width M.
BLOCK = {
    "norm1.weight": "C", "norm1.bias": "C",
    "attn.q_bias": "C", "attn.v_bias": "C",
    "attn.q_proj.weight": "CC", "attn.k_proj.weight": "CC", "attn.v_proj.weight": "CC",
    "attn.proj.weight": "CC", "attn.proj.bias": "C",
    "norm2.weight": "C", "norm2.bias": "C",
    "mlp.w1.weight": "MC", "mlp.w1.bias": "M", "mlp.w2.weight": "MC", "mlp.w2.bias": "M",
    "mlp.ffn_ln.weight": "M", "mlp.ffn_ln.bias": "M",
    "mlp.w3.weight": "CM", "mlp.w3.bias": "C",
}  # fmt: skip


def official(spec):
    """Return the official names and shapes for a spec."""
    architecture, width = spec.architecture, spec.width
    sizes = {"C": width, "M": int(width * (4 * 2 / 3))}
    grid = architecture.pretrained_image_size // architecture.patch
    shapes = {
        "pos_embed": (1, grid * grid + 1, width),
        "patch_embed.proj.weight": (width, 3, architecture.patch, architecture.patch),
        "patch_embed.proj.bias": (width,),
    }
    for index in range(architecture.depth):
        for name, letters in BLOCK.items():
            shapes[f"blocks.{index}.{name}"] = tuple(sizes[letter] for letter in letters)
    return shapes


@pytest.mark.parametrize("name", ["eva02-tiny", "eva02-l-1024"])
def test_the_state_dict_has_exactly_the_official_names_and_shapes(name):
    spec = find_spec(name)
    with torch.device("meta"):
        encoder = encoder_from_spec(spec, grid=8, normalization="per_encoder")
    shapes = {key: tuple(value.shape) for key, value in encoder.tower.state_dict().items()}
    assert shapes == official(spec)


def test_the_large_backbone_has_the_published_layout():
    architecture = find_spec("eva02-l-1024").architecture
    with torch.device("meta"):
        backbone = Eva02Backbone(architecture, 1024)
    windows = [block.window for block in backbone.blocks]
    expected = [0 if index % 3 == 2 else 16 for index in range(24)]
    assert windows == expected
    assert backbone.blocks[0].mlp.w1.out_features == 2730
    assert backbone.pos_embed.shape[1] == 14 * 14 + 1


def angle(side, head_width, row, channel):
    """Return the angle of one channel of the row half, straight from the definition."""
    half = head_width // 2
    return row / side * 16 * 10000.0 ** (-2 * (channel // 2) / half)


@pytest.mark.parametrize("side", [8, 16, 64])
def test_rotary_angles_follow_the_definition(side):
    head_width = 16
    cosine, sine = rotary_tables(side, head_width, 16, CPU)
    assert cosine.shape == (side * side, head_width)
    for row, column in [(0, 0), (1, 3), (side - 1, side // 2)]:
        cell = row * side + column
        for channel in range(head_width // 2):
            by_row = angle(side, head_width, row, channel)
            by_column = angle(side, head_width, column, channel)
            assert cosine[cell, channel] == pytest.approx(math.cos(by_row), abs=1e-4)
            assert sine[cell, channel] == pytest.approx(math.sin(by_row), abs=1e-4)
            second_half = head_width // 2 + channel
            assert cosine[cell, second_half] == pytest.approx(math.cos(by_column), abs=1e-4)


def test_interpolated_frequencies_make_every_side_span_the_pretrained_one():
    window = rotary_tables(16, 16, 16, CPU)[0].view(16, 16, 16)
    whole = rotary_tables(64, 16, 16, CPU)[0].view(64, 64, 16)
    torch.testing.assert_close(whole[::4, ::4], window)


def test_rotation_keeps_lengths_and_turns_neighbouring_pairs():
    cosine, sine = rotary_tables(4, 8, 16, CPU)
    vectors = torch.randn(2, 3, 16, 8)
    turned = rotate(vectors, cosine, sine)
    lengths = vectors.view(2, 3, 16, 4, 2).norm(dim=-1)
    torch.testing.assert_close(turned.view(2, 3, 16, 4, 2).norm(dim=-1), lengths)
    torch.testing.assert_close(turned[:, :, 0], vectors[:, :, 0])


def test_scores_depend_on_the_offset_between_cells_only():
    side, width = 6, 16
    cosine, sine = rotary_tables(side, width, 16, CPU)
    query, key = torch.randn(width), torch.randn(width)
    queries = rotate(query.expand(1, 1, side * side, width), cosine, sine)[0, 0]
    keys = rotate(key.expand(1, 1, side * side, width), cosine, sine)[0, 0]
    scores = (queries @ keys.T).view(side, side, side, side)
    torch.testing.assert_close(scores[0, 0, 2, 1], scores[3, 2, 5, 3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[1, 4, 0, 0], scores[5, 5, 4, 1], rtol=1e-4, atol=1e-4)
    assert not torch.isclose(scores[0, 0, 2, 1], scores[0, 0, 1, 2])


def test_attention_is_softmax_of_scaled_rotated_scores():
    torch.manual_seed(0)
    attention = Attention(width=24, heads=2, pretrained_sequence=16)
    attention.q_bias.data.normal_()
    attention.v_bias.data.normal_()
    maps = torch.randn(2, 4, 4, 24)
    tokens = maps.view(2, 16, 24)
    cosine, sine = rotary_tables(4, 12, 16, CPU)
    outputs = []
    for head in range(2):
        rows = slice(12 * head, 12 * head + 12)
        query = tokens @ attention.q_proj.weight[rows].T + attention.q_bias[rows]
        key = tokens @ attention.k_proj.weight[rows].T
        value = tokens @ attention.v_proj.weight[rows].T + attention.v_bias[rows]
        scores = rotate(query, cosine, sine) @ rotate(key, cosine, sine).transpose(1, 2)
        outputs.append((scores / math.sqrt(12)).softmax(-1) @ value)
    expected = attention.proj(torch.cat(outputs, dim=-1)).view(2, 4, 4, 24)
    torch.testing.assert_close(attention(maps), expected, rtol=1e-4, atol=1e-5)


def test_swiglu_gates_then_normalises():
    mlp = SwiGLU(6, 16)
    hidden = torch.randn(3, 6)
    gate = functional.silu(hidden @ mlp.w1.weight.T + mlp.w1.bias)
    gated = gate * (hidden @ mlp.w2.weight.T + mlp.w2.bias)
    normed = functional.layer_norm(gated, (16,), mlp.ffn_ln.weight, mlp.ffn_ln.bias, 1e-6)
    torch.testing.assert_close(mlp(hidden), normed @ mlp.w3.weight.T + mlp.w3.bias)


@pytest.mark.parametrize("side", [4, 8, 10])
def test_windows_are_cut_and_put_back(side):
    maps = torch.randn(2, side, side, 3)
    windows = partition_windows(maps, 4)
    count = -(-side // 4)
    assert windows.shape == (2 * count * count, 4, 4, 3)
    assert torch.equal(windows[0], maps[0, :4, :4])
    assert torch.equal(merge_windows(windows, 4, side), maps)


def changed_cells(block, side):
    """Return which cells of the output notice a change of cell (0, 0)."""
    maps = torch.randn(1, side, side, 24)
    other = maps.clone()
    other[0, 0, 0] = -10.0 * maps[0, 0, 0]
    with torch.no_grad():
        difference = (block(maps) - block(other)).abs().sum(-1)[0]
    return difference > 0


def test_a_window_block_sees_its_window_and_a_global_block_everything():
    torch.manual_seed(0)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[:4, :4] = True
    window = changed_cells(Block(24, 2, window=4, pretrained_sequence=16), 8)
    everything = changed_cells(Block(24, 2, window=0, pretrained_sequence=16), 8)
    assert torch.equal(window, inside)
    assert everything.all()


def test_positions_are_resampled_so_that_any_size_runs():
    architecture = Eva02Architecture(
        depth=2, heads=2, patch=8, window=4, global_blocks=(1,), pretrained_image_size=32,
        pretrained_sequence=16,
    )  # fmt: skip
    backbone = Eva02Backbone(architecture, 24)
    with torch.no_grad():
        for side in (32, 64, 80):
            grid = side // 8
            assert backbone(torch.randn(1, 3, side, side)).shape == (1, 24, grid, grid)


def test_the_class_tokens_position_is_not_used():
    encoder = encoder_from_spec(find_spec("eva02-tiny"), grid=8, normalization="per_encoder")
    with torch.no_grad():
        before = encoder(pictures(1))
        encoder.tower.pos_embed[:, 0] += 100.0
        assert torch.equal(encoder(pictures(1)), before)


def test_half_precision_runs_and_stays_close():
    encoder = encoder_from_spec(find_spec("eva02-tiny"), grid=8, normalization="per_encoder")
    with torch.no_grad():
        exact = encoder(pictures(1))
        rough = encoder.to(torch.bfloat16)(pictures(1))
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
