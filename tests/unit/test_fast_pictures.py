"""What training decodes: JPEG by libjpeg-turbo, bit for bit Pillow's; a new size within one level."""

import io

import numpy as np
import pytest
from PIL import Image

from manyeyes.data.images import BadPictureError, decode, decode_fast
from manyeyes.model.processor import Processor


def picture(width, height, mode="RGB"):
    """Return clouds with some grain."""
    generator = np.random.default_rng(width)
    coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    clouds = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = generator.normal(0.0, 6.0, (height, width, 3))
    pixels = (np.asarray(clouds, dtype=float) + grain).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 85, **options})
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(61, 47), (160, 120), (1, 1)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 1}),
        ("RGB", {"subsampling": 2, "progressive": True}),
        ("L", {"quality": 30}),
    ],
)
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(size, mode, options):
    data = jpeg(picture(*size, mode), **options)
    fast = decode_fast(data, "picture")
    assert isinstance(fast, np.ndarray)
    assert np.array_equal(fast, np.asarray(decode(data, "picture")))


@pytest.mark.parametrize("kind", ["png", "cmyk"])
def test_everything_else_is_left_to_pillow(kind):
    if kind == "cmyk":
        data = jpeg(picture(40, 30, "CMYK"))
    else:
        buffer = io.BytesIO()
        picture(40, 30).save(buffer, "PNG")
        data = buffer.getvalue()
    fast = decode_fast(data, "picture")
    assert isinstance(fast, Image.Image)
    assert np.array_equal(np.asarray(fast), np.asarray(decode(data, "picture")))


@pytest.mark.parametrize("kind", ["cut off", "too large", "header only", "empty"])
def test_a_bad_jpeg_is_refused_in_the_same_words(kind):
    whole = jpeg(picture(160, 120))
    data = {"cut off": whole[: len(whole) // 2], "header only": whole[:3], "empty": b""}
    limit = 100 if kind == "too large" else 1_000_000
    with pytest.raises(BadPictureError) as slow:
        decode(data.get(kind, whole), "picture", limit)
    with pytest.raises(BadPictureError) as fast:
        decode_fast(data.get(kind, whole), "picture", limit)
    assert str(fast.value) == str(slow.value)


@pytest.mark.parametrize("pieces", [None, 4])
@pytest.mark.parametrize("size", [(64, 64), (64, 40), (31, 64)])
def test_a_jpeg_of_the_canvas_size_is_the_same_canvas_bit_for_bit(size, pieces):
    if pieces and size[0] % 16 + size[1] % 16:
        size = (64, 48)
    data = jpeg(picture(*size))
    processor = Processor(64, pieces=pieces)
    expected = processor.canvas(decode(data, "picture"))
    assert processor.canvas(decode_fast(data, "picture")).equal(expected)


@pytest.mark.parametrize("pieces", [None, 4])
@pytest.mark.parametrize("size", [(200, 150), (90, 210), (20, 31), (128, 128)])
def test_a_jpeg_of_another_size_differs_by_one_level_in_few_places(size, pieces):
    data = jpeg(picture(*size))
    processor = Processor(64, pieces=pieces)
    expected = processor.canvas(decode(data, "picture")).int()
    apart = (processor.canvas(decode_fast(data, "picture")).int() - expected).abs()
    assert int(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 0.01
