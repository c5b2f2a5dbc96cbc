"""Decoding: odd but honest pictures become RGB, dangerous and damaged ones become one sentence."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from manyeyes.data.dataset.images import decode, decode_for_model, identify, is_turned, read_size
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
    "empty": (
        b"",
        "p.png: the file is empty; give it as PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO or PPM.",
    ),
    "text": (
        b"not a picture",
        "p.png: the file is not a picture; give it as PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO or PPM.",
    ),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "p.png: the file is a PostScript document; convert it.",
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


def turned(fmt, number, size=(30, 20), mode="RGB", **options):
    """Return a picture whose EXIF says how it was held, and how it is to be seen."""
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = number
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, fmt, exif=exif, **options)
    seen = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue()))).convert("RGB")
    return file.getvalue(), np.asarray(seen)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_is_turned_as_its_camera_was_held(kind, number):
    data, seen = turned(kind, number)
    assert read_size(data, "p") == (seen.shape[1], seen.shape[0])
    assert np.array_equal(np.asarray(decode(data, "p")), seen)
    assert np.array_equal(np.asarray(decode_for_model(data, "p")), seen)
    assert is_turned(data) == (number != 1)


def test_a_picture_that_pillow_has_to_decode_is_turned_too():
    data, seen = turned("JPEG", 6, mode="CMYK")
    assert np.array_equal(np.asarray(decode_for_model(data, "p")), seen)


BAD_EXIF = {
    "cut off": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "no order": b"Exif\0\0XX*\0",
    "empty": b"Exif\0\0",
    "no such orientation": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    "a directory far away": b"Exif\0\0MM\0*\xff\xff\xff\xff",
}


@pytest.mark.parametrize("case", BAD_EXIF)
def test_exif_that_makes_no_sense_turns_nothing(case):
    for kind in ("JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        Image.new("RGB", (30, 20)).save(file, kind, exif=BAD_EXIF[case])
        assert read_size(file.getvalue(), "p") == (30, 20)
        assert decode(file.getvalue(), "p").size == (30, 20)


def test_what_pillow_says_of_bad_exif_is_not_heard(tmp_path):
    file = tmp_path / "p.jpg"
    Image.new("RGB", (30, 20)).save(file, exif=BAD_EXIF["cut off"] + b"\x1a\x01\x05" * 3)
    code = (
        "import sys; from pathlib import Path; from manyeyes.data.dataset.images import decode; "
        "print(decode(Path(sys.argv[1]).read_bytes(), 'p').size)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code, file], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("(30, 20)\n", "")


def png_with(*chunks, damage=False):
    """Return a small PNG with more chunks behind its header."""
    packed = b""
    for kind, content in chunks:
        checksum = zlib.crc32(kind + content) ^ damage
        packed += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return WHOLE[:33] + packed + WHOLE[33:]


METADATA = {
    "text": (b"tEXt", b"k\0" + b"x" * 3_000_000),
    "packed text": (b"zTXt", b"k\0\0" + zlib.compress(b"x" * 200_000_000)),
    "international text": (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
    "colour profile": (b"iCCP", b"k\0\0" + zlib.compress(b"x" * 3_000_000)),
}


@pytest.mark.parametrize("damage", [False, True], ids=["whole", "wrong checksum"])
@pytest.mark.parametrize("case", METADATA)
def test_what_a_png_holds_beside_its_pixels_is_no_reason_to_refuse_it(case, damage):
    data = png_with(METADATA[case], damage=damage)
    assert np.array_equal(np.asarray(decode(data, "p")), np.asarray(decode(WHOLE, "p")))


@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "GIF", "BMP"])
def test_other_formats_are_read(kind):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 100, 50)).save(
        file, kind, **({"sizes": [(32, 32)]} if kind == "ICO" else {})
    )
    assert read_size(file.getvalue(), "p") == (32, 32)
    seen = decode(file.getvalue(), "p").getpixel((5, 5))
    assert np.abs(np.subtract(seen, (200, 100, 50))).max() < 8


def test_sixteen_bits_are_scaled_in_every_format():
    picture = Image.fromarray(np.full((4, 4), 0x80FF, dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        file = io.BytesIO()
        picture.save(file, kind)
        assert decode(file.getvalue(), "p").getpixel((0, 0)) == (128, 128, 128)


def test_an_icon_that_hides_a_huge_picture_is_refused_by_its_true_size():
    inner = huge_png(30000, 20000)
    entry = struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, len(inner), 22)
    with pytest.raises(UserError, match="header of this ICO file is damaged"):
        decode(struct.pack("<HHH", 0, 1, 1) + entry + inner, "p")


NAMED = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture; convert it to JPEG or PNG"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer and not the file itself; run 'git lfs pull'"),
    "a page": (b"\n<!doctype HTML><html>", "an HTML page (the answer of a web server?); fetch the file itself"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg">', "an SVG drawing; convert it to PNG"),
    "PDF": (b"%PDF-1.7", "a PDF document; convert it"),
    "a video": (b"\0\0\0\x18ftypisom", "a video; give a picture"),
    "JPEG XL": (b"\xff\x0a\0\0", "a JPEG XL picture; convert it to JPEG or PNG"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMED)
def test_what_is_no_picture_or_not_read_is_named(case):
    data, told = NAMED[case]
    with pytest.raises(UserError) as refusal:
        decode(data, "p")
    assert str(refusal.value) == f"p: the file is {told}."


def test_numbers_that_are_no_colours_are_refused():
    file = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(file, "TIFF")
    with pytest.raises(UserError) as refusal:
        decode(file.getvalue(), "p")
    assert str(refusal.value) == (
        "p: the picture holds numbers of 32 bits; save it with 8 or 16 bits a colour."
    )
