"""The fusions of Mini-Gemini, Cambrian-1 and Eagle's ablation: formulas, sizes, any number of images."""

import pytest
import torch

from manyeyes.config.recipe import (
    DeformableAttention,
    EncoderSection,
    MixtureOfResolution,
    PatchInfoMining,
    SequenceAppend,
    SpatialVisionAggregator,
)
from manyeyes.data.loading.conversation import IMAGE_TOKEN
from manyeyes.errors import UserError
from manyeyes.model.fusion import Eyes, build_fusion
from manyeyes.model.vlm import VisionLanguageModel
from tests.model_kit import model_section, pictures, write_llama

MINING = PatchInfoMining(kind="patch_info_mining", low="clip", high="convnext", crops=1)
DEFORMABLE = DeformableAttention(kind="deformable_attention", heads=4, points=2)
AGGREGATOR = SpatialVisionAggregator(
    kind="spatial_vision_aggregator",
    width=16, heads=2, depth=2, num_layers=1, first_layer=0, layer_stride=1,
)  # fmt: skip
RESOLUTION = MixtureOfResolution(
    kind="mixture_of_resolution", fast="clip", slow="convnext", before_blocks=(1, 2)
)
APPEND = SequenceAppend(kind="sequence_append")


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"))


def eyes(widths, grids, grid, names=("low", "high", "third"), width=8, layers=4):
    families = ("clip", "convnext", "dinov2", "convnext")[: len(widths)]
    return Eyes(names[: len(widths)], families, widths, grids, grid, width, layers)


def mixture(llm, fusion, *, seed=0, fine=None):
    """Return a model of two tiny encoders; ``fine`` is the second one's own grid."""
    encoders = (
        EncoderSection(name="clip", spec="clip-tiny", weights="random"),
        EncoderSection(name="convnext", spec="convnext-tiny", weights="random", grid=fine),
    )
    section = model_section(llm, fusion=fusion, encoders=encoders)
    return VisionLanguageModel.from_recipe(section, seed=seed).train(mode=False)


FUSIONS = [
    (APPEND, None, 32),
    (MINING, 8, 16),
    (DEFORMABLE, None, 16),
    (RESOLUTION, 8, 16),
    (AGGREGATOR, 8, 20),
]
IDS = [fusion.kind for fusion, _, _ in FUSIONS]


@pytest.mark.parametrize(("fusion", "fine", "num_tokens"), FUSIONS, ids=IDS)
def test_any_number_of_images_stands_anywhere_and_each_is_seen_alike(llm, fusion, fine, num_tokens):
    model = mixture(llm, fusion, fine=fine)
    assert model.config.num_visual_tokens == num_tokens
    canvas = pictures(2)
    ids = torch.tensor([[5, IMAGE_TOKEN, 6, IMAGE_TOKEN, 7], [8, 9, 10, 11, 12]])
    both = model(ids, pixels=canvas).logits
    assert both.shape[:2] == (2, 3 + 2 * num_tokens)
    alone = model(torch.tensor([[5, IMAGE_TOKEN, 6]]), pixels=canvas[:1]).logits
    torch.testing.assert_close(both[:1, : num_tokens + 2], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("fusion", "fine", "num_tokens"), FUSIONS, ids=IDS)
def test_every_parameter_of_a_fusion_learns(llm, fusion, fine, num_tokens):
    model = mixture(llm, fusion, fine=fine).train()
    ids = torch.tensor([[5, IMAGE_TOKEN, 6, 7]])
    model(ids, labels=torch.tensor([[-100, -100, 6, 7]]), pixels=pictures(1)).loss.backward()
    still = [name for name, p in model.fusion.named_parameters() if p.grad is None]
    assert still == []


@pytest.mark.parametrize(("fusion", "fine", "num_tokens"), FUSIONS, ids=IDS)
def test_a_saved_fusion_loads_and_generates_the_same(llm, tmp_path, fusion, fine, num_tokens):
    from manyeyes.model.processor import Processor
    from manyeyes.model.saving import save_model
    from manyeyes.model.transformer import load_tokenizer

    model = mixture(llm, fusion, fine=fine)
    save_model(model, load_tokenizer(llm), Processor(canvas_size=128), tmp_path)
    again = VisionLanguageModel.from_pretrained(tmp_path)
    ids = torch.tensor([[5, IMAGE_TOKEN, 6]])
    canvas = pictures(1)
    expected = model.generate(ids, pixels=canvas, max_new_tokens=4)
    assert torch.equal(again.generate(ids, pixels=canvas, max_new_tokens=4), expected)
    first = model(ids, pixels=canvas).logits[:, -1].argmax(-1)
    assert torch.equal(expected[:, 0], first)


def test_mining_is_attention_over_the_window_of_each_cell():
    torch.manual_seed(0)
    section = PatchInfoMining(kind="patch_info_mining", low="low", high="high", crops=1)
    fusion = build_fusion(section, eyes((6, 5), (2, 4), 2))
    low, high = torch.randn(1, 6, 2, 2), torch.randn(1, 5, 4, 4)
    (tokens,) = fusion([low, high])
    window = high[0, :, 2:4, 0:2].flatten(1).T  # the cells behind row 1, column 0
    query = fusion.query(low[0, :, 1, 0])
    weights = (fusion.key(window) @ query / 6**0.5).softmax(0)
    expected = low[0, :, 1, 0] + weights @ fusion.value(window)
    torch.testing.assert_close(tokens[0, 2], expected)


def test_the_views_of_high_definition_are_the_whole_and_its_parts_row_by_row():
    section = PatchInfoMining(kind="patch_info_mining", low="low", high="high", crops=2)
    fusion = build_fusion(section, eyes((6, 5), (2, 8), 2))
    assert fusion.num_tokens == 5 * 4
    high = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 5, 8, 8)
    windows = fusion._windows(high)  # (views, cells, window, channels)
    assert windows.shape == (5, 4, 4, 5)
    assert windows[2, 0, :, 0].tolist() == [4.0, 5.0, 12.0, 13.0]  # the upper right part
    assert windows[0, 0, 0, 0] == high[0, 0, :2, :2].mean()  # the whole at half the size


def test_deformable_attention_with_equal_weights_averages_its_points():
    fusion = build_fusion(DEFORMABLE, eyes((8, 3), (4, 4), 4))
    with torch.no_grad():
        fusion.offset.bias.zero_()
    base, other = torch.randn(1, 8, 4, 4), torch.randn(1, 3, 4, 4)
    (tokens,) = fusion([base, other])
    levels = [into(each) for into, each in zip(fusion.into, (base, other), strict=True)]
    mean = fusion.value(sum(level.flatten(2).transpose(1, 2) for level in levels) / 2)
    torch.testing.assert_close(tokens, base.flatten(2).transpose(1, 2) + fusion.out(mean))


def test_an_adapter_starts_as_if_it_were_not_there(llm):
    with_adapters = mixture(llm, RESOLUTION)
    canvas = pictures(1)
    fast, _slow = with_adapters.see(canvas)
    assert torch.equal(fast, with_adapters.experts["clip"](canvas))
    with torch.no_grad():
        with_adapters.fusion.adapters[0].slow[2].bias += 0.5
    assert not torch.equal(fast, with_adapters.see(canvas)[0])


def test_the_adapters_have_the_published_size():
    section = MixtureOfResolution(
        kind="mixture_of_resolution", fast="low", slow="high", before_blocks=(6, 12, 18)
    )
    with torch.device("meta"):
        fusion = build_fusion(section, eyes((1024, 1536), (32, 32), 32))
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in fusion.adapters]
    assert [round(size, 1) for size in sizes] == [6.1, 6.1, 6.1]
    ends = [*fusion.from_fast.parameters(), *fusion.from_slow.parameters()]
    assert round(sum(p.numel() for p in ends) / 1e6, 1) == 2.6


def test_the_aggregator_asks_only_the_cells_of_its_own_spot():
    torch.manual_seed(0)
    fusion = build_fusion(AGGREGATOR, eyes((4, 3), (2, 4), 2))
    first, fine = torch.randn(1, 4, 2, 2), torch.randn(1, 3, 4, 4)
    (tokens,) = fusion([first, fine])
    touched = fine.clone()
    touched[:, :, 2:4, 0:2] += 1.0  # behind row 1, column 0
    (changed,) = fusion([first, touched])
    same = [torch.equal(tokens[0, cell], changed[0, cell]) for cell in range(4)]
    assert same == [True, True, False, True]


def test_rows_of_the_aggregator_end_with_the_newline():
    fusion = build_fusion(AGGREGATOR, eyes((4, 3), (2, 4), 2))
    arranged = fusion.arrange(torch.zeros(3, 4, 8))
    assert arranged.shape == (3, fusion.num_tokens, 8) == (3, 6, 8)
    assert torch.equal(arranged[1, 2], fusion.newline)
    assert torch.equal(arranged[1, 5], fusion.newline)


@pytest.mark.parametrize(
    ("widths", "llm_width", "layers", "inside", "before"),
    [
        ((1152, 1024, 1536, 5760), 4096, 32, 220.6, 47.3),
        ((1152, 1024, 1536, 5760), 5120, 40, 241.5, 47.3),
    ],
    ids=["cambrian-8b", "cambrian-13b"],
)
def test_cambrians_aggregator_has_the_published_size(widths, llm_width, layers, inside, before):
    stride = layers // 10
    section = SpatialVisionAggregator(
        kind="spatial_vision_aggregator",
        width=1024, heads=16, depth=3, num_layers=10, first_layer=0, layer_stride=stride,
    )  # fmt: skip
    names = ("siglip", "clip", "dinov2", "convnext")
    with torch.device("meta"):
        fusion = build_fusion(section, eyes(widths, (24, 24, 24, 96), 24, names, llm_width, layers))

    def millions(module):
        return round(sum(p.numel() for p in module.parameters()) / 1e6, 1)

    assert millions(fusion.inside_samplers) == inside
    assert millions(fusion.samplers) == before
    assert [millions(into) for into in fusion.into] == [2.2, 2.1, 2.6, 7.0]


def test_minings_layers_have_the_published_size():
    section = PatchInfoMining(kind="patch_info_mining", low="low", high="high", crops=1)
    with torch.device("meta"):
        fusion = build_fusion(section, eyes((1024, 2880), (24, 192), 24))
    assert round(sum(p.numel() for p in fusion.parameters()) / 1e6, 2) == 6.96


@pytest.mark.parametrize(
    ("section", "given", "text"),
    [
        (
            PatchInfoMining(kind="patch_info_mining", low="lov", high="high", crops=1),
            eyes((4, 3), (2, 4), 2),
            "Unknown encoder as model.fusion.low 'lov': known are high, low; did you mean 'low'?",
        ),
        (
            PatchInfoMining(kind="patch_info_mining", low="low", high="high", crops=1),
            eyes((4, 3), (2, 5), 2),
            "The map of high has 5 cells a side, which must be a multiple of 2 (grid of low x "
            "crops): set its grid in model.encoders.",
        ),
        (
            PatchInfoMining(kind="patch_info_mining", low="low", high="high", crops=1),
            eyes((4, 3, 2), (2, 4, 2), 2),
            "Fusion patch_info_mining joins two encoders, one as low and one as high; "
            "model.encoders has low, high, third.",
        ),
        (
            AGGREGATOR.model_copy(update={"first_layer": 4}),
            eyes((4, 3), (2, 4), 2),
            "model.fusion samples after decoder layer 4, but the language model has layers 0 to 3: "
            "lower first_layer, layer_stride or num_layers.",
        ),
        (
            AGGREGATOR,
            eyes((4, 3), (2, 3), 2),
            "The map of high has 3 cells a side, which must be a multiple of the query grid 2: "
            "set its grid in model.encoders.",
        ),
        (
            MixtureOfResolution(
                kind="mixture_of_resolution", fast="high", slow="low", before_blocks=(1,)
            ),
            eyes((6, 3), (2, 2), 2),
            "Fusion mixture_of_resolution works inside the blocks of a CLIP; high is of the family "
            "convnext.",
        ),
        (
            DEFORMABLE,
            eyes((6, 3), (2, 2), 2),
            "model.fusion.heads is 4, which does not divide the 6 channels of low.",
        ),
    ],
    ids=[
        "unknown encoder",
        "odd window",
        "three encoders",
        "layer",
        "odd ratio",
        "no clip",
        "heads",
    ],
)
def test_what_cannot_be_fused_is_said(section, given, text):
    with pytest.raises(UserError) as error:
        build_fusion(section, given)
    assert str(error.value) == text
