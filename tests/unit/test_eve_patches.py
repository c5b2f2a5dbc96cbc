"""Pictures of any shape become tokens: geometry, canvas, and EVE's patch embedding layer."""

import json
import math

import pytest
import torch
from eve_kit import SIZES, canvases, eve, noise, table
from model_kit import write_llama
from PIL import Image

from manyeyes.config.recipe import EncoderSection
from manyeyes.data.loading.conversation import IMAGE_TOKEN
from manyeyes.errors import UserError
from manyeyes.model.encoders import build_encoder
from manyeyes.model.encoders.patch_embedding import PatchEmbeddingLayer
from manyeyes.model.processor import MEAN_COLOUR, Processor
from manyeyes.model.rectangle import Rectangles, fit, num_tokens


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"))


@pytest.mark.parametrize(
    ("size", "low", "high"),
    [
        ((336, 336), 601, 2353),
        ((20, 20), 601, 2353),
        ((640, 480), 451, 36 * 49 + 1),
        ((480, 640), 24 * 19 + 1, 48 * 37 + 1),
        ((1000, 1), 26, 2 * 49 + 1),
        ((1000, 709), 18 * 25 + 1, 36 * 49 + 1),
        ((1000, 751), 19 * 25 + 1, 38 * 49 + 1),
    ],
    ids=str,
)
def test_a_picture_takes_eves_number_of_tokens(size, low, high):
    assert num_tokens(*size, pieces=24, side=24) == low
    assert num_tokens(*size, pieces=24, side=48) == high
    for side, expected in ((24, low), (48, high)):
        laid_out = Rectangles.of(torch.tensor([size]), 1, pieces=24, side=side)
        assert laid_out.num_tokens_I.tolist() == [expected]


def test_the_shorter_side_is_rounded_up_to_whole_pieces():
    for width in range(1, 40):
        for height in range(1, 40):
            across, down = fit(width, height, 24)
            shorter, longer = sorted((width, height))
            assert sorted((across, down)) == [math.ceil(24 * shorter / longer - 1e-9), 24]


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((64, 64), (0, 0, 48, 48)),
        ((10, 10), (0, 0, 48, 48)),
        ((80, 20), (0, 18, 48, 30)),
        ((80, 21), (0, 12, 48, 30)),
        ((20, 80), (18, 0, 30, 48)),
    ],
    ids=str,
)
def test_a_picture_lies_on_whole_pieces_of_the_canvas(size, box):
    """8 pieces of 6 px; of an odd number of free pieces the odd one lies behind."""
    canvas = Processor(48, pieces=8).pixels([Image.new("RGB", size, (255, 0, 255))])[0]
    left, top, right, bottom = box
    expected = torch.tensor(MEAN_COLOUR, dtype=torch.uint8).view(3, 1, 1).repeat(1, 48, 48)
    expected[:, top:bottom, left:right] = torch.tensor([255, 0, 255]).view(3, 1, 1)
    assert torch.equal(canvas, expected)


def test_a_processor_keeps_its_layout(tmp_path):
    Processor(48, pieces=8).save(tmp_path)
    assert Processor.load(tmp_path) == Processor(48, pieces=8)
    before = json.loads((tmp_path / "processor.json").read_text())
    del before["pieces"]
    (tmp_path / "processor.json").write_text(json.dumps(before))
    assert Processor.load(tmp_path) == Processor(48)


def by_hand(layer, pixels, size, pieces):
    """The tokens of one picture, one cell and one head at a time."""
    side = pixels.shape[-1] // layer.patch_embedding.kernel_size[0] // layer.pooling
    across, down = (number * side // pieces for number in fit(*size, pieces))
    left, top = ((pieces - n * pieces // side) // 2 * (side // pieces) for n in (across, down))
    patches = layer.patch_embedding(pixels[None])[0]  # (C, 2 side, 2 side)
    tokens, cells = [], []
    for row in range(top, top + down):
        for column in range(left, left + across):
            window = patches[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1).T
            cells.append(look(layer.local_attention, window.mean(0), window))
            tokens.append(cells[-1])
        tokens.append(layer.split_embedding)
    classes = look(layer.global_attention, layer.class_embedding, torch.stack(cells))
    return torch.stack([classes, *tokens])


def look(attention, query, keys):
    """One query, one head at a time; the scale is that of the whole width."""
    width = len(query)
    q = attention.q[1](attention.q[0](query))
    k, v = attention.kv[1](attention.kv[0](keys)).split(width, dim=-1)
    found = []
    for part in torch.arange(width).chunk(attention.heads):
        weights = (k[:, part] @ q[part] / math.sqrt(width)).softmax(0)
        found.append(weights @ v[:, part])
    return query + attention.proj(torch.cat(found))


@pytest.mark.parametrize("step", [1, 2], ids=["one cell a piece", "four cells a piece"])
def test_the_layer_is_what_a_plain_loop_says(step):
    with table(step):
        section = EncoderSection(name="patches", spec="patches-small", weights="random")
        encoder = build_encoder(section, grid=4 * step)
    processor = Processor(32 * step, pieces=4)
    images = noise()
    laid_out = Rectangles.of(processor.sizes(images), len(images), pieces=4, side=4 * step)
    canvas = processor.pixels(images)
    with torch.no_grad():
        tokens = encoder.tokens(canvas, laid_out)
        pixels = encoder.preprocess(canvas)
        for number, size in enumerate(SIZES):
            expected = by_hand(encoder.tower, pixels[number], size, 4)
            assert len(expected) == num_tokens(*size, pieces=4, side=4 * step)
            found = tokens[number, : len(expected)]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            assert not tokens[number, len(expected) :].any()


def test_as_one_encoder_of_several_it_gives_the_cells_of_the_whole_canvas():
    with table(1):
        section = EncoderSection(name="patches", spec="patches-small", weights="random")
        encoder = build_encoder(section, grid=4)
    canvas = Processor(32, pieces=4).pixels(noise([(50, 50)]))
    with torch.no_grad():
        cells = encoder(canvas)[0].flatten(1).T  # (16, C)
        tokens = encoder.tokens(canvas, Rectangles.of(None, 1, pieces=4, side=4))[0, 1:]
    torch.testing.assert_close(tokens.view(4, 5, -1)[:, :4].reshape(16, -1), cells)


def test_the_layer_has_the_published_size_and_the_authors_names():
    with torch.device("meta"):
        layer = PatchEmbeddingLayer(1024, patch=14, pooling=2, heads=8)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 9_003_008
    names = {name.split(".")[0] for name in layer.state_dict()}
    assert names == {
        "patch_embedding", "class_embedding", "split_embedding", "local_attention",
        "global_attention",
    }  # fmt: skip
    inner = {name.split(".")[1] for name in layer.state_dict() if "attention" in name}
    assert inner == {"q", "kv", "proj"}


@pytest.mark.parametrize("step", [1, 2], ids=["one cell a piece", "four cells a piece"])
def test_a_picture_alone_reads_as_beside_larger_ones(llm, step):
    model = eve(llm, step, alignment=False)
    images = noise()
    pixels, sizes = canvases(model, images)
    ids = torch.tensor(
        [[5, IMAGE_TOKEN, 6, IMAGE_TOKEN, 7], [IMAGE_TOKEN, 8, 9, IMAGE_TOKEN, 6], [5, 6, 7, 8, 9]]
    )
    with torch.no_grad():
        together = model(ids, pixels=pixels, image_sizes=sizes)
        for row in range(2):
            pair = slice(2 * row, 2 * row + 2)
            one = model(ids[row : row + 1], pixels=pixels[pair], image_sizes=sizes[pair]).logits[0]
            taken = sum(model.picture_tokens(*size) for size in SIZES[pair])
            assert len(one) == 3 + taken
            assert int(together.visual_mask[row].sum()) == taken
            torch.testing.assert_close(together.logits[row, : len(one)], one, atol=1e-4, rtol=1e-4)


def test_squares_need_no_sizes(llm):
    model = eve(llm, alignment=False)
    pixels, sizes = canvases(model, noise([(40, 40), (70, 70)]))
    ids = torch.tensor([[5, IMAGE_TOKEN, 6, IMAGE_TOKEN]])
    with torch.no_grad():
        told = model(ids, pixels=pixels, image_sizes=sizes).logits
        untold = model(ids, pixels=pixels).logits
    assert told.shape[1] == 2 + 2 * model.config.num_visual_tokens
    torch.testing.assert_close(told, untold)


def test_prompts_of_unlike_pictures_are_continued_as_each_alone(llm):
    model = eve(llm, alignment=False)
    pixels, sizes = canvases(model, noise(SIZES[1:3]))
    ids = torch.tensor([[5, IMAGE_TOKEN, 6], [7, IMAGE_TOKEN, 8]])
    both = model.generate(ids, None, pixels, sizes, max_new_tokens=4)
    for row in range(2):
        one = slice(row, row + 1)
        alone = model.generate(ids[one], None, pixels[one], sizes[one], max_new_tokens=4)
        assert both[row, : alone.shape[1]].tolist() == alone[0].tolist()


def test_text_alone_sees_nothing(llm, monkeypatch):
    model = eve(llm, alignment=False)
    monkeypatch.setattr(model.fusion, "see", lambda *_: pytest.fail("looked"))
    model(torch.tensor([[5, 6, 7]]))


def test_shapes_are_traced_without_weights(llm):
    with torch.device("meta"):
        model = eve(llm, load=False)
    shapes = {shape.where: shape.shape for shape in model.trace_shapes(64)}
    assert shapes["encoders.patches native"] == (1, 24, 4, 4)
    assert shapes["fusion"] == (1, 21, 24)
    assert shapes["projector"] == (1, 21, 32)


def test_too_many_placeholders_are_said(llm):
    model = eve(llm, alignment=False)
    pixels, sizes = canvases(model, noise(SIZES[:1]))
    with pytest.raises(UserError) as error:
        model(torch.tensor([[IMAGE_TOKEN, IMAGE_TOKEN]]), pixels=pixels, image_sizes=sizes)
    assert str(error.value) == (
        "The batch has 2 image placeholders for 1 images: give exactly one image per placeholder."
    )


TWO = (
    EncoderSection(name="patches", spec="patches-small", weights="random"),
    EncoderSection(name="clip", spec="clip-tiny", weights="random"),
)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"encoders": TWO},
            "Fusion patch_embedding takes one encoder of the family patch_embedding; "
            "model.encoders has patches (patch_embedding), clip (clip).",
        ),
        (
            {"encoders": TWO[1:]},
            "Fusion patch_embedding takes one encoder of the family patch_embedding; "
            "model.encoders has clip (clip).",
        ),
        (
            {"grid": 6},
            "The patches of patches make 4 cells a side, which cannot be resized: set model.grid "
            "to 4, not 6.",
        ),
    ],
    ids=["two encoders", "another encoder", "another grid"],
)
def test_what_cannot_be_a_patch_embedding_is_said(llm, changes, text):
    with pytest.raises(UserError) as error:
        eve(llm, alignment=False, **changes)
    assert str(error.value) == text
