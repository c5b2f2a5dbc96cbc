"""Fusion and projector."""

import torch

from manyeyes.config.recipe import ChannelConcat, MlpProjector, SequenceAppend
from manyeyes.model.fusion import Eyes, build_fusion
from manyeyes.model.projector import build_projector

PAIR = Eyes(
    names=("one", "two"),
    families=("clip", "sam"),
    widths=(2, 3),
    grids=(5, 5),
    grid=5,
    language_width=8,
    language_layers=2,
)


def test_channel_concat_puts_maps_side_by_side_in_order():
    fusion = build_fusion(ChannelConcat(kind="channel_concat"), PAIR)
    first, second = torch.randn(4, 2, 5, 5), torch.randn(4, 3, 5, 5)
    (tokens,) = fusion([first, second])
    assert fusion.group_widths == (5,)
    assert tokens.shape == (4, fusion.num_tokens, 5)
    assert torch.equal(tokens[:, 7, :2], first[:, :, 1, 2])
    assert torch.equal(tokens[:, 7, 2:], second[:, :, 1, 2])


def test_channel_concat_has_no_parameters():
    assert list(build_fusion(ChannelConcat(kind="channel_concat"), PAIR).parameters()) == []


def test_sequence_append_projects_each_expert_for_itself_and_appends():
    fusion = build_fusion(SequenceAppend(kind="sequence_append"), PAIR)
    projector = build_projector(MlpProjector(kind="mlp2x_gelu"), fusion.group_widths, 8)
    first, second = torch.randn(4, 2, 5, 5), torch.randn(4, 3, 5, 5)
    visual = projector(fusion([first, second]))
    assert visual.shape == (4, fusion.num_tokens, 8) == (4, 50, 8)
    changed = projector(fusion([first, second + 1]))
    assert torch.equal(visual[:, :25], changed[:, :25])
    assert not torch.equal(visual[:, 25:], changed[:, 25:])


def test_the_projector_has_llavas_keys_and_formula():
    projector = build_projector(MlpProjector(kind="mlp2x_gelu"), (6,), 8)
    assert list(projector.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    tokens = torch.randn(2, 7, 6)
    hidden = torch.nn.functional.gelu(tokens @ projector[0].weight.T + projector[0].bias)
    expected = hidden @ projector[2].weight.T + projector[2].bias
    torch.testing.assert_close(projector([tokens]), expected)


def test_eagle_x5s_projector_has_the_published_size():
    with torch.device("meta"):
        projector = build_projector(MlpProjector(kind="mlp2x_gelu"), (7680,), 4096)
    assert round(sum(p.numel() for p in projector.parameters()) / 1e6, 1) == 48.2
