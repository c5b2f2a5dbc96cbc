"""Text-only micro-batches beside others' pictures: every trained weight is met, nothing changes."""

import pytest
import torch
from model_kit import model_section, pictures, write_llama

from manyeyes.config.recipe import (
    ChannelConcat,
    DeformableAttention,
    EncoderSection,
    MixtureOfResolution,
    PatchInfoMining,
    SequenceAppend,
    SpatialVisionAggregator,
)
from manyeyes.model.vlm import VisionLanguageModel

FUSIONS = [
    (ChannelConcat(kind="channel_concat"), None),
    (SequenceAppend(kind="sequence_append"), None),
    (PatchInfoMining(kind="patch_info_mining", low="clip", high="convnext", crops=2), 8),
    (DeformableAttention(kind="deformable_attention", heads=4, points=2), None),
    (
        MixtureOfResolution(
            kind="mixture_of_resolution", fast="clip", slow="convnext", before_blocks=(1, 2)
        ),
        None,
    ),
    (
        SpatialVisionAggregator(
            kind="spatial_vision_aggregator",
            width=16, heads=2, depth=1, num_layers=2, first_layer=0, layer_stride=1,
        ),
        8,
    ),
]  # fmt: skip
IDS = [fusion.kind for fusion, _ in FUSIONS]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"))


def mixture(llm, fusion, fine):
    encoders = (
        EncoderSection(name="clip", spec="clip-tiny", weights="random"),
        EncoderSection(name="convnext", spec="convnext-tiny", weights="random", grid=fine),
    )
    section = model_section(llm, fusion=fusion, encoders=encoders)
    return VisionLanguageModel.from_recipe(section, seed=0).train()


def gradients(model, **inputs):
    model.zero_grad()
    ids = torch.tensor([[5, 6, 7, 8], [6, 9, 10, 11]])
    loss = model(ids, labels=ids, **inputs).loss
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize(("fusion", "fine"), FUSIONS, ids=IDS)
def test_idle_pixels_reach_every_trained_weight_and_change_nothing(llm, fusion, fine):
    model = mixture(llm, fusion, fine)
    plain_loss, plain = gradients(model)
    loss, found = gradients(model, idle_pixels=pictures(1))
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert torch.equal(loss, plain_loss)
    for name, gradient in found.items():
        if name.startswith("llm."):
            assert torch.equal(gradient, plain[name]), name
        else:
            assert plain[name] is None, name
            assert not gradient.any(), name


def test_idle_pixels_pass_the_samplers_where_pictures_do(llm):
    """Weights that are shared out (ZeRO-3) are gathered in the order in which modules run."""
    model = mixture(llm, *FUSIONS[-1])
    order = []
    parts = [*model.fusion.inside_samplers, *model.llm.model.layers]
    names = ["sampler 0", "sampler 1", "layer 0", "layer 1"]
    for name, part in zip(names, parts, strict=True):
        part.register_forward_pre_hook(lambda _m, _i, name=name: order.append(name))
    model(torch.tensor([[5, 6, 7]]), idle_pixels=pictures(1))
    assert order == ["layer 0", "sampler 0", "layer 1", "sampler 1"]
