"""Fusion and projector."""

import torch

from manyeyes.model.fusion import build_fusion
from manyeyes.model.projector import build_projector
from manyeyes.recipe import ChannelConcat, MlpProjector


def test_channel_concat_puts_maps_side_by_side_in_order():
    fusion = build_fusion(ChannelConcat(kind="channel_concat"), [2, 3])
    first, second = torch.randn(4, 2, 5, 5), torch.randn(4, 3, 5, 5)
    fused = fusion([first, second])
    assert fusion.width == 5
    assert torch.equal(fused[:, :2], first)
    assert torch.equal(fused[:, 2:], second)


def test_channel_concat_has_no_parameters():
    assert list(build_fusion(ChannelConcat(kind="channel_concat"), [2, 3]).parameters()) == []


def test_the_projector_has_llavas_keys_and_formula():
    projector = build_projector(MlpProjector(kind="mlp2x_gelu"), 6, 8)
    assert list(projector.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    tokens = torch.randn(2, 7, 6)
    hidden = torch.nn.functional.gelu(tokens @ projector[0].weight.T + projector[0].bias)
    expected = hidden @ projector[2].weight.T + projector[2].bias
    torch.testing.assert_close(projector(tokens), expected)


def test_eagle_x5s_projector_has_the_published_size():
    with torch.device("meta"):
        projector = build_projector(MlpProjector(kind="mlp2x_gelu"), 7680, 4096)
    assert round(sum(p.numel() for p in projector.parameters()) / 1e6, 1) == 48.2
