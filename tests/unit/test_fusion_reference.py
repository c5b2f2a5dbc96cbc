"""Every fusion against the same thing in plain loops (``tests/fusion_reference.py``)."""

# ruff: noqa: N803  (a tensor's name ends in its shape)

import numpy as np
import pytest
import torch
from fusion_reference import (
    Aggregator,
    Weights,
    adapter,
    cells,
    channel_concat,
    deformable,
    mine,
    mine_high_definition,
    mixture_of_resolution,
    numpy_of,
)
from model_kit import model_section, pictures, write_llama

from manyeyes.config.recipe import (
    ChannelConcat,
    DeformableAttention,
    EncoderSection,
    MixtureOfResolution,
    MlpProjector,
    PatchInfoMining,
    SequenceAppend,
    SpatialVisionAggregator,
)
from manyeyes.data.loading.conversation import IMAGE_TOKEN
from manyeyes.model.encoders.base import resize_canvas, unit_range
from manyeyes.model.fusion import Eyes, build_fusion
from manyeyes.model.projector import build_projector
from manyeyes.model.transformer import decoder_of
from manyeyes.model.vlm import VisionLanguageModel

IMG = IMAGE_TOKEN
CLOSE = {"atol": 1e-9, "rtol": 1e-9}


def eyes(widths, grids, grid, layers=4):
    names, families = ("low", "high", "third"), ("clip", "convnext", "dinov2")
    count = len(widths)
    return Eyes(names[:count], families[:count], widths, grids, grid, 8, layers)


def shaken(module):
    """Give every weight a value of its own: zeros and ones would hide what they multiply."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator).double())
    return module.eval()


def maps(widths, grids, images=2):
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randn(images, width, side, side, generator=generator).double()
        for width, side in zip(widths, grids, strict=True)
    ]


def check(tokens_IVC, expected):
    np.testing.assert_allclose(numpy_of(tokens_IVC), np.array(expected), **CLOSE)


def test_channel_concat():
    given = maps((2, 3, 4), (4, 4, 4))
    (tokens,) = build_fusion(ChannelConcat(kind="channel_concat"), eyes((2, 3, 4), (4, 4, 4), 4))(
        given
    )
    check(tokens, [channel_concat([numpy_of(one[i]) for one in given]) for i in range(2)])


def test_sequence_append_with_its_projectors():
    given = maps((2, 3), (2, 4))
    fusion = build_fusion(SequenceAppend(kind="sequence_append"), eyes((2, 3), (2, 4), 2))
    projector = shaken(build_projector(MlpProjector(kind="mlp2x_gelu"), fusion.group_widths, 6))
    weights = Weights(projector)
    expected = [
        [
            weights.at(str(expert)).mlp(cell)
            for expert, one in enumerate(given)
            for cell in cells(numpy_of(one[i]))
        ]
        for i in range(2)
    ]
    check(projector(fusion(given)), expected)


def test_patch_info_mining():
    section = PatchInfoMining(kind="patch_info_mining", low="low", high="high", crops=1)
    fusion = shaken(build_fusion(section, eyes((6, 5), (2, 6), 2)))
    low, high = maps((6, 5), (2, 6))
    (tokens,) = fusion([low, high])
    weights = Weights(fusion)
    check(tokens, [mine(weights, numpy_of(low[i]), numpy_of(high[i])) for i in range(2)])


@pytest.mark.parametrize("crops", [2, 3])
def test_patch_info_mining_in_high_definition(crops):
    section = PatchInfoMining(kind="patch_info_mining", low="low", high="high", crops=crops)
    fusion = shaken(build_fusion(section, eyes((6, 5), (2, 4 * crops), 2)))
    views = crops**2 + 1
    (low,), (high,) = maps((6,), (2,), 2 * views), maps((5,), (4 * crops,), 2)
    # ``see`` works in float32, so the whole at half the size is resized in float32, too
    high = high.float().double()
    (tokens,) = fusion([low, high])
    weights = Weights(fusion)
    expected = [
        mine_high_definition(
            weights, numpy_of(low[i * views : (i + 1) * views]), numpy_of(high[i]), crops
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(numpy_of(tokens), np.array(expected), atol=1e-5, rtol=1e-5)


def test_deformable_attention():
    section = DeformableAttention(kind="deformable_attention", heads=2, points=3)
    fusion = shaken(build_fusion(section, eyes((4, 3, 5), (3, 3, 4), 3)))
    with torch.no_grad():
        fusion.offset.bias.mul_(4.0)  # so that places lie outside the map, too
    given = maps((4, 3, 5), (3, 3, 4))
    (tokens,) = fusion(given)
    weights = Weights(fusion)
    expected = [deformable(weights, [numpy_of(one[i]) for one in given], 2, 3) for i in range(2)]
    # sampling is done in float32
    np.testing.assert_allclose(numpy_of(tokens), np.array(expected), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("slow_side", [3, 6, 2], ids=["as fine", "finer", "coarser"])
def test_an_adapter_and_the_last_sum_of_mixture_of_resolution(slow_side):
    section = MixtureOfResolution(
        kind="mixture_of_resolution", fast="low", slow="high", before_blocks=(1,)
    )
    fusion = shaken(build_fusion(section, eyes((4, 5), (3, slow_side), 3)))
    fast, slow = maps((4, 5), (3, slow_side))
    weights = Weights(fusion)
    pairs = [(numpy_of(fast[i]), numpy_of(slow[i])) for i in range(2)]
    precision = {"atol": 1e-5, "rtol": 1e-5} if slow_side == 2 else CLOSE  # enlarged in float32
    adapted = fusion.adapters[0](fast.flatten(2).transpose(1, 2), slow)
    expected = [cells(adapter(weights.at("adapters.0"), one, other)) for one, other in pairs]
    np.testing.assert_allclose(numpy_of(adapted), np.array(expected), **precision)
    (tokens,) = fusion([fast, slow])
    expected = [mixture_of_resolution(weights, one, other) for one, other in pairs]
    np.testing.assert_allclose(numpy_of(tokens), np.array(expected), **precision)


SVA = SpatialVisionAggregator(
    kind="spatial_vision_aggregator",
    width=8, heads=2, depth=3, num_layers=1, first_layer=0, layer_stride=1,
)  # fmt: skip


def test_the_aggregator_in_front_of_the_language_model():
    widths, grids = (4, 3, 5), (2, 4, 6)
    fusion = shaken(build_fusion(SVA, eyes(widths, grids, 2)))
    given = maps(widths, grids)
    (tokens,) = fusion(given)
    weights = Weights(fusion)
    expected = [
        Aggregator(weights, [numpy_of(one[i]) for one in given], 2, 2).before(3) for i in range(2)
    ]
    check(tokens, expected)


# ---- inside other modules ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"), num_hidden_layers=4)


def mixture(llm, fusion, *, fine=None, grid=2):
    encoders = (
        EncoderSection(name="clip", spec="clip-tiny", weights="random", grid=grid),
        EncoderSection(name="convnext", spec="convnext-tiny", weights="random", grid=fine),
    )
    section = model_section(llm, fusion=fusion, encoders=encoders, grid=grid)
    model = VisionLanguageModel.from_recipe(section, seed=0).eval()
    shaken(model.fusion).float()
    return model


@torch.no_grad()
def test_adapters_stand_in_front_of_the_blocks_that_the_recipe_names(llm):
    section = MixtureOfResolution(
        kind="mixture_of_resolution", fast="clip", slow="convnext", before_blocks=(0, 2)
    )
    model = mixture(llm, section, fine=8, grid=8)
    canvas = pictures(1)
    fast, slow = model.see(canvas)
    clip, weights = model.experts["clip"], Weights(model.fusion)
    before = []
    handle = clip.tower.encoder.layers[0].register_forward_pre_hook(
        lambda _, inputs: before.append(inputs[0])
    )
    clip(canvas)
    handle.remove()
    hidden = before[0]
    for index, block in enumerate(clip.tower.encoder.layers):
        if index in (0, 2):
            square = numpy_of(hidden[0].T.reshape(-1, 8, 8))
            mixed = adapter(weights.at(f"adapters.{index // 2}"), square, numpy_of(slow[0]))
            hidden = torch.tensor(np.array(cells(mixed))).float().unsqueeze(0)
        hidden = block(hidden, None)
    np.testing.assert_allclose(
        numpy_of(fast.flatten(2).transpose(1, 2)), numpy_of(hidden), atol=1e-3, rtol=1e-3
    )


@torch.no_grad()
def test_the_views_of_high_definition_are_what_the_low_expert_sees_of_each(llm):
    section = PatchInfoMining(kind="patch_info_mining", low="clip", high="convnext", crops=2)
    model = mixture(llm, section, fine=8)
    canvas = pictures(2, size=320)
    low, high = model.see(canvas)
    clip = model.experts["clip"]
    side = clip.spec.image_size
    whole = resize_canvas(unit_range(canvas), 2 * side, clip.spec.resample)
    for image in range(2):
        views = [canvas[image]]
        for row in (0, side):
            views += [whole[image, :, row : row + side, at : at + side] for at in (0, side)]
        for index, view in enumerate(views):
            torch.testing.assert_close(low[image * 5 + index], clip(view[None])[0])
    assert torch.equal(high, model.experts["convnext"](canvas))


ROWS = {
    "one image behind a short prompt": [[5, IMG, 6, 7]],
    "one image behind a long prompt": [[5, 6, 7, 8, 9, 10, 11, 5, IMG, 6, 7]],
    "several images": [[IMG, 5, IMG, 6, 7, IMG]],
    "several samples, one without": [[5, IMG, 6, IMG], [7, 8, 9, 10], [IMG, 5, 6, 7]],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@torch.no_grad()
def test_the_aggregator_inside_the_language_model_wherever_images_stand(llm, rows):
    inside = SVA.model_copy(update={"num_layers": 2, "first_layer": 1, "layer_stride": 2})
    model = mixture(llm, inside, fine=4)
    ids = torch.tensor(rows)
    num_images = int((ids == IMG).sum())
    canvas = pictures(num_images)
    layers = decoder_of(model.llm).layers
    raw, given = {}, {}
    handles = [
        layers[i].register_forward_hook(lambda _m, _i, out, i=i: raw.__setitem__(i, out.clone()))
        for i in (1, 3)
    ]
    handles.append(
        layers[2].register_forward_pre_hook(lambda _m, inputs: given.__setitem__(1, inputs[0]))
    )
    norm = decoder_of(model.llm).norm
    handles.append(
        norm.register_forward_pre_hook(lambda _m, inputs: given.__setitem__(3, inputs[0]))
    )
    model(ids, pixels=canvas)
    for handle in handles:
        handle.remove()
    looked, weights = model.see(canvas), Weights(model.fusion)
    images = [
        Aggregator(weights, [numpy_of(one[i]) for one in looked], 2, 2) for i in range(num_images)
    ]
    for place, layer in enumerate((1, 3)):
        expected = numpy_of(raw[layer])
        waiting = iter(images)
        for row, sample in enumerate(rows):
            start = 0
            for token in sample:
                if token != IMG:
                    start += 1
                    continue
                span = expected[row, start : start + 6]
                rewritten = next(waiting).rewrite(weights.at(f"inside_samplers.{place}"), [*span])
                assert np.abs(np.array(rewritten)[:2] - span[:2]).max() > 1e-2
                expected[row, start : start + 6] = rewritten
                start += 6
        np.testing.assert_allclose(numpy_of(given[layer]), expected, atol=1e-4, rtol=1e-3)
