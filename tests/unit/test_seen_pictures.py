"""What a model sees of a picture: Pillow's pixels bit for bit, and the same for whoever shows it."""

import base64
import io
import sys
from itertools import product

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from training_kit import sample

from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.images import (
    BadPictureError,
    as_image,
    decode,
    decode_for_model,
    size_of,
)
from manyeyes.data.dataset.sample import Turn
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.loading.canvases import make_canvases
from manyeyes.data.loading.conversation import IMAGE_TOKEN
from manyeyes.evaluation.generate import GreedyAnswerer, Prompt, Subject, mean_colour
from manyeyes.model.processor import Processor
from manyeyes.serve.assistant import Assistant
from manyeyes.serve.chat import Conversation

SIZES = ((1, 1), (2, 3), (16, 16), (17, 31), (33, 1), (61, 47), (160, 121))
SAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


def picture(width, height, mode="RGB"):
    """Return clouds with some grain."""
    generator = np.random.default_rng(width)
    coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    clouds = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = generator.normal(0.0, 20.0, (height, width, 3))
    pixels = (np.asarray(clouds, dtype=float) + grain).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 85, **options})
    return buffer.getvalue()


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def jpegs(size):
    """Yield JPEGs of every kind that Pillow and libjpeg-turbo write."""
    for quality, progressive, restart in product((3, 75, 100), (False, True), (0, 2)):
        how = {"quality": quality, "progressive": progressive, "restart_marker_blocks": restart}
        yield jpeg(picture(*size, "L"), **how)
        yield jpeg(picture(*size, "CMYK"), **how)
        for subsampling in (0, 1, 2):
            yield jpeg(picture(*size), subsampling=subsampling, **how)
    yield jpeg(picture(*size), keep_rgb=True)
    values = np.asarray(picture(*size))
    for sampling, quick in product(SAMPLINGS, (False, True)):
        yield simplejpeg.encode_jpeg(values, colorsubsampling=sampling, fastdct=quick)


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_turbo", [True, False], ids=["turbo", "pillow-alone"])
def test_every_jpeg_has_the_pixels_that_pillow_gives_it(size, has_turbo, monkeypatch):
    if not has_turbo:
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    for data in jpegs(size):
        seen = decode_for_model(data, "picture")
        assert isinstance(seen, np.ndarray)
        assert size_of(seen) == size
        assert same(seen, decode(data, "picture"))
        assert same(as_image(seen), seen)


def test_everything_else_stays_pillows():
    seen = decode_for_model(png(picture(40, 30)), "picture")
    assert isinstance(seen, Image.Image)
    assert size_of(seen) == (40, 30)
    assert as_image(seen) is seen
    assert same(seen, picture(40, 30))


def judged(decoder, data, limit):
    """Return the pixels, or why there are none."""
    try:
        return np.asarray(decoder(data, "picture", limit)).tolist()
    except BadPictureError as error:
        return str(error)


def test_a_changed_or_cut_jpeg_is_judged_the_same_by_both():
    generator = np.random.default_rng(0)
    whole = [jpeg(picture(19, 13)), jpeg(picture(30, 9), progressive=True, subsampling=2)]
    num_refused = 0
    for number in range(300):
        data = bytearray(whole[number % 2])
        data[generator.integers(3, len(data))] = generator.integers(256)
        if number % 3 == 0:
            del data[generator.integers(3, len(data)) :]
        verdict = judged(decode, bytes(data), 10_000)
        assert judged(decode_for_model, bytes(data), 10_000) == verdict
        num_refused += isinstance(verdict, str)
    assert 50 < num_refused < 250


@pytest.mark.parametrize("kind", ["cut off", "too large", "header only", "empty"])
def test_a_bad_jpeg_is_refused_in_the_same_words(kind):
    whole = jpeg(picture(160, 120))
    data = {"cut off": whole[: len(whole) // 2], "header only": whole[:3], "empty": b""}
    limit = 100 if kind == "too large" else 1_000_000
    verdict = judged(decode, data.get(kind, whole), limit)
    assert isinstance(verdict, str)
    assert judged(decode_for_model, data.get(kind, whole), limit) == verdict


@pytest.mark.parametrize("pieces", [None, 4])
@pytest.mark.parametrize("size", [(64, 64), (64, 40), (31, 64)])
def test_a_jpeg_of_the_canvas_size_is_the_canvas_of_pillow_bit_for_bit(size, pieces):
    if pieces and size[0] % 16 + size[1] % 16:
        size = (64, 48)
    data = jpeg(picture(*size))
    processor = Processor(64, pieces=pieces)
    expected = processor.canvas(decode(data, "picture"))
    assert processor.canvas(decode_for_model(data, "picture")).equal(expected)


@pytest.mark.parametrize("pieces", [None, 4])
@pytest.mark.parametrize("size", [(200, 150), (90, 210), (20, 31), (128, 128)])
def test_a_jpeg_of_another_size_is_resized_within_a_level_of_pillow(size, pieces):
    data = jpeg(picture(*size))
    processor = Processor(64, pieces=pieces)
    expected = processor.canvas(decode(data, "picture")).int()
    apart = (processor.canvas(decode_for_model(data, "picture")).int() - expected).abs()
    assert int(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 0.01


@pytest.mark.parametrize("size", [(20, 31), (128, 90), (300, 200)])
def test_noise_of_another_size_is_resized_within_two_levels_of_pillow(size):
    values = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = Processor(96).canvas(Image.fromarray(values)).int()
    apart = (Processor(96).canvas(values).int() - expected).abs()
    assert int(apart.max()) <= 2
    assert float((apart > 0).float().mean()) < 0.01


FILES = {
    "jpeg": jpeg(picture(90, 61), subsampling=2),
    "cmyk": jpeg(picture(61, 90, "CMYK")),
    "grey": jpeg(picture(20, 31, "L"), progressive=True),
    "png": png(picture(90, 61)),
}


class Watching:
    """A model, and what it was shown."""

    device = torch.device("cpu")

    def __init__(self):
        self.pixels, self.sizes = None, None

    def generate(self, input_ids, mask, pixels, sizes, **options):
        self.pixels, self.sizes, self.options = pixels, sizes, options
        return torch.zeros(len(input_ids), 1, dtype=torch.long)


class Listener:
    """Takes the place of an assistant; makes the pixels that one would show its model."""

    def __init__(self, processor):
        self.processor = processor

    def answer(self, turns, images, **options):
        self.pixels, self.sizes = self.processor.pixels(images), self.processor.sizes(images)
        return "well"


class Silent:
    eos_token_id = 0

    def convert_ids_to_tokens(self, ids):
        return "<end>"

    def decode(self, ids, **options):
        return ""


@pytest.fixture
def dataset(tmp_path):
    with DatasetWriter(tmp_path / "data") as writer:
        for name, data in FILES.items():
            ref = writer.add_image(data, name)
            turns = (Turn("human", "<image>\nsay"), Turn("gpt", "hello"))
            writer.add(sample(f"says-{name}", "t", turns, (ref,)))
    return Dataset.open(tmp_path / "data")


@pytest.mark.parametrize("pieces", [None, 4], ids=["padded", "laid-out"])
def test_a_model_is_trained_scored_and_served_with_the_same_pixels(dataset, tmp_path, pieces):
    from manyeyes.serve.pyfunc_model import ManyeyesModel

    processor = Processor(64, pieces=pieces)
    refs = [one.images[0] for one in dataset.samples()]
    trained = make_canvases(dataset, processor.canvas, refs).pixels

    model = Watching()
    subject = Subject(model, Silent(), processor, "plain_chat")
    prompts = [Prompt(ref.id, (IMAGE_TOKEN, 5), (ref,), 5) for ref in refs]
    GreedyAnswerer(subject, dataset.pictures, max_new_tokens=1)(prompts)
    assert model.pixels.equal(trained)
    assert model.sizes.tolist() == [[ref.width, ref.height] for ref in refs]

    listener = Listener(processor)
    conversation = Conversation(listener)
    served = ManyeyesModel()
    served._assistant = listener
    for name, canvas in zip(FILES, trained, strict=True):
        (tmp_path / name).write_bytes(FILES[name])
        encoded = base64.b64encode(FILES[name]).decode()
        served._answer({"question": "well?", "image_base64": encoded}, 4)
        assert listener.pixels[0].equal(canvas)
        conversation.show(tmp_path / name)
    conversation.ask("well?")
    assert listener.pixels.equal(trained)
    assert listener.sizes.equal(model.sizes)


def test_an_assistant_shows_its_model_the_pictures_as_they_were_read(monkeypatch):
    model, processor = Watching(), Processor(64)
    model.config = type("Config", (), {"max_length": 100})
    model.llm = type("Llama", (), {"config": model.config})
    model.picture_tokens = lambda width, height: width // 10 + height // 30
    monkeypatch.setattr(
        "manyeyes.data.loading.conversation.prompt", lambda *_, **__: [IMAGE_TOKEN, 5]
    )
    seen = decode_for_model(FILES["jpeg"], "picture")
    Assistant(model, Silent(), processor, "plain_chat").answer([], [seen], max_new_tokens=1)
    assert model.pixels.equal(processor.pixels([seen]))
    assert model.sizes.tolist() == [[90, 61]]
    assert model.options["max_new_tokens"] == 1


def test_an_answer_ends_at_the_models_last_position(monkeypatch):
    model = Watching()
    model.config = type("Config", (), {"max_length": 100})
    model.llm = type("Llama", (), {"config": type("C", (), {"max_position_embeddings": 120})})
    model.picture_tokens = lambda *_: 1
    monkeypatch.setattr("manyeyes.data.loading.conversation.prompt", lambda *_, **__: [5] * 90)
    Assistant(model, Silent(), Processor(64), "plain_chat").answer([], [], max_new_tokens=100_000)
    assert model.options["max_new_tokens"] == 30


def test_the_blind_colour_is_that_of_the_values(dataset):
    refs = [one.images[0] for one in dataset.samples()]
    means = [np.asarray(dataset.read_image(ref), dtype=float).mean((0, 1)) for ref in refs]
    assert mean_colour(dataset, refs) == tuple(round(value) for value in np.mean(means, axis=0))


def test_text_in_a_jpeg_is_read_from_a_picture(tmp_path):
    class Reader:
        def read(self, shown):
            return [f"{shown.mode} {shown.size}"]

    (tmp_path / "a.jpg").write_bytes(FILES["jpeg"])
    conversation = Conversation(Listener(Processor(64)), reader=Reader())
    conversation.show(tmp_path / "a.jpg")
    assert conversation.ask("well?").recognised == ("RGB (90, 61)",)
