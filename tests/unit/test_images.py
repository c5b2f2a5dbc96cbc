"""Decoding: odd but honest pictures become RGB, dangerous and damaged ones become one sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from manyeyes.data.images import decode, identify, read_size
from manyeyes.errors import UserError


def encoded(image: Image.Image, name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )  # fmt: skip


def huge_png(width: int, height: int) -> bytes:
    """A picture of one colour, as an attacker would send it: a few bytes a row."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )  # fmt: skip


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
WHOLE = encoded(NOISE)

DAMAGED = (
    "p.png: the picture is truncated or damaged and cannot be decoded; fetch or write it again."
)
REFUSED = {
    "empty": (b"", "p.png: the file is empty; give it as PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO or PPM."),
    "text": (
        b"not a picture",
        "p.png: the file is not a picture; give it as PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO or PPM.",
    ),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "p.png: the file is not a picture; give it as PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO or PPM.",
    ),
    "truncated png": (WHOLE[: len(WHOLE) // 2], DAMAGED),
    "truncated jpeg": (encoded(NOISE, "JPEG")[:-400], DAMAGED),
    "truncated gif": (encoded(NOISE, "GIF")[:-400], DAMAGED),
    "truncated bmp": (encoded(NOISE, "BMP")[:-400], DAMAGED),
    "header cut": (
        WHOLE[:20],
        "p.png: the header of this PNG file is damaged; fetch or write it again.",
    ),
    "magic only": (
        b"\xff\xd8\xff\x00\x00",
        "p.png: the header of this JPEG file is damaged; fetch or write it again.",
    ),
    "bits flipped": (
        WHOLE[:200] + bytes(byte ^ 255 for byte in WHOLE[200:260]) + WHOLE[260:],
        DAMAGED,
    ),
    "huge": (
        huge_png(30000, 30000),
        "p.png: the picture has 30000 x 30000 = 900000000 pixels, more than the 1000000 allowed; "
        "make it smaller, or raise validate.max_image_pixels.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_decode_refuses_with_one_sentence(case: str) -> None:
    data, sentence = REFUSED[case]
    with pytest.raises(UserError) as refusal:
        decode(data, "p.png", 1_000_000)
    assert str(refusal.value) == sentence


def test_the_size_is_checked_before_a_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(UserError, match="30000 x 30000"):
        decode(huge_png(30000, 30000), "p.png")


def test_a_picture_at_the_limit_is_decoded() -> None:
    assert decode(WHOLE, "p.png", 64 * 48).size == (48, 64)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    image = decode(encoded(Image.new(mode, (5, 4))), "p.png")
    assert (image.mode, image.size) == ("RGB", (5, 4))


@pytest.mark.parametrize(("name", "mode"), [("JPEG", "CMYK"), ("JPEG", "L"), ("WEBP", "RGBA")])
def test_other_formats_become_rgb(name: str, mode: str) -> None:
    assert decode(encoded(Image.new(mode, (5, 4)), name), "p").mode == "RGB"


def test_transparency_is_shown_over_white() -> None:
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert decode(encoded(clear), "p.png").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_brightness() -> None:
    grey = Image.fromarray(np.full((2, 2), 128 * 256, dtype=np.uint16))
    assert decode(encoded(grey), "p.png").getpixel((0, 0)) == (128, 128, 128)


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "p.gif").getpixel((0, 0)) == (255, 0, 0)


def test_the_format_is_told_by_content_and_the_size_by_header() -> None:
    assert identify(encoded(NOISE, "JPEG"), "p.png").suffix == ".jpg"
    assert read_size(huge_png(30000, 20000), "p.png") == (30000, 20000)
