"""Decode pictures that strangers wrote.

Design decisions:

- Every picture of the product passes through :func:`decode`, or :func:`decode_for_model` if a
  model is to see it, so the rules are in one place.
- A model is trained, scored and served by :func:`decode_for_model` alone. It gives a JPEG as values
  and everything else as Pillow's picture, and that decides who enlarges or reduces it (see
  ``manyeyes.model.processor``): the first bytes of a file decide what a model sees of it, never the
  program that shows it.
- libjpeg-turbo (``simplejpeg``) decodes ordinary JPEG, somewhat faster than Pillow and equal bit
  for bit: both leave libjpeg's accurate DCT and smooth upsampling on. Every JPEG that is not quite
  right is left to Pillow, so what is accepted does not depend on who decodes.
- The size is read from the header and compared with the limit *before* a pixel is decoded: a
  30,000 x 30,000 PNG of one colour is 1 MB on disk and 2.7 GB in memory.
- The decoder is picked from the first bytes, never from a file name, out of five formats. Pillow
  knows several dozen more, some of which start other programs; a dataset has no use for them.
- The result is always 8-bit RGB: the first frame of an animation, transparency over white, 16-bit
  greyscale scaled (Pillow's own conversion would clip it to white).
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from manyeyes.errors import UserError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

Picture: TypeAlias = "Image.Image | NDArray[numpy.uint8]"
"""A picture as a model sees it: of a JPEG RGB values (height, width, 3), else Pillow's."""

MAX_PIXELS = 64_000_000
"""The limit where no recipe states one: an 8,000 x 8,000 picture."""

_JPEG_MAGIC = b"\xff\xd8\xff"
_TURBO_COLOURS = ("YCbCr", "Gray", "RGB")
"""The others (CMYK, YCCK) come inverted from some programs, which Pillow knows of."""
_READABLE = "PNG, JPEG, WebP, GIF or BMP"

# What Pillow raises for damaged files; it has no common base class.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


class BadPictureError(UserError):
    """The bytes of one picture are not what they should be; no repetition changes that."""


@dataclass(frozen=True)
class ImageFormat:
    """One kind of picture file this product reads."""

    name: str
    suffix: str
    magic: bytes
    """The first bytes of such a file."""
    reader: type[ImageFile]
    brand: tuple[int, bytes] = (0, b"")
    """More bytes to find, at an offset: WebP shares its first ones with other RIFF files."""

    def matches(self, data: bytes) -> bool:
        """Tell whether ``data`` starts like a file of this format."""
        offset, brand = self.brand
        return data.startswith(self.magic) and data[offset : offset + len(brand)] == brand


FORMATS: tuple[ImageFormat, ...] = (
    ImageFormat("PNG", ".png", b"\x89PNG\r\n\x1a\n", PngImageFile),
    ImageFormat("JPEG", ".jpg", _JPEG_MAGIC, JpegImageFile),
    ImageFormat("WebP", ".webp", b"RIFF", WebPImageFile, brand=(8, b"WEBP")),
    ImageFormat("GIF", ".gif", b"GIF8", GifImageFile),
    ImageFormat("BMP", ".bmp", b"BM", BmpImageFile),
)


def identify(data: bytes, where: str) -> ImageFormat:
    """Name the format of a picture by its first bytes.

    Args:
        data: the file's bytes.
        where: what to call the picture in an error ("train-00012 in images-00000.tar").

    Raises:
        BadPictureError: if it is none of the formats this product reads.
    """
    for image_format in FORMATS:
        if image_format.matches(data):
            return image_format
    problem = "the file is empty" if not data else "the file is not a picture"
    raise BadPictureError(f"{where}: {problem}; give it as {_READABLE}.")


def read_size(data: bytes, where: str) -> tuple[int, int]:
    """Read (width, height) in pixels from a picture's header, decoding nothing.

    Raises:
        BadPictureError: if it is not a picture, or its header is damaged.
    """
    return _open(data, where).size


def decode(data: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to 8-bit RGB, or say in one sentence why not.

    Args:
        data: the file's bytes.
        where: what to call the picture in an error.
        max_pixels: largest width x height accepted, compared before decoding.

    Returns:
        The picture in mode RGB.

    Raises:
        BadPictureError: if it is not a picture, too large, truncated or damaged.
    """
    image = _open(data, where)
    _check_size(*image.size, where, max_pixels)
    try:
        image.load()
        return _to_rgb(image)
    except _DAMAGED as error:
        raise BadPictureError(
            f"{where}: the picture is truncated or damaged and cannot be decoded; "
            "fetch or write it again."
        ) from error


def decode_for_model(data: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture as :func:`decode` does, bit for bit; every JPEG to values.

    Returns:
        RGB values (height, width, 3) of a JPEG, the picture in mode RGB of anything else.

    Raises:
        BadPictureError: as :func:`decode`.
    """
    if not data.startswith(_JPEG_MAGIC):
        return decode(data, where, max_pixels)
    import numpy

    values = _decode_turbo(data, max_pixels)
    # A copy: torch takes no values that cannot be written to.
    return numpy.array(decode(data, where, max_pixels)) if values is None else values


def size_of(picture: Picture) -> tuple[int, int]:
    """Return (width, height) in pixels."""
    if isinstance(picture, Image.Image):
        return picture.size
    height, width, _ = picture.shape
    return width, height


def as_image(picture: Picture) -> Image.Image:
    """Return what a model sees as a picture in mode RGB, for those who show or read it."""
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def _decode_turbo(data: bytes, max_pixels: int) -> NDArray[numpy.uint8] | None:
    """Decode a JPEG by libjpeg-turbo; None for what Pillow is to read, or to judge."""
    try:
        import simplejpeg  # type: ignore[import-untyped]  # it ships no types
    except ImportError:  # where a model is served from an environment put together by hand
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _TURBO_COLOURS or width * height > max_pixels:
            return None
        # Strict: what libjpeg would only warn of is for Pillow to judge.
        values: NDArray[numpy.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
        return values
    except ValueError:
        return None


def _check_size(width: int, height: int, where: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadPictureError(
            f"{where}: the picture has {width} x {height} = {width * height} pixels, more than "
            f"the {max_pixels} allowed; make it smaller, or raise validate.max_image_pixels."
        )


def _open(data: bytes, where: str) -> ImageFile:
    """Parse the header with the one reader that the first bytes call for.

    The readers are called directly: ``Image.open`` would try every format it knows and would
    refuse large pictures by a limit of its own, without naming their size.
    """
    image_format = identify(data, where)
    try:
        image = image_format.reader(io.BytesIO(data))
    except _DAMAGED as error:
        raise BadPictureError(
            f"{where}: the header of this {image_format.name} file is damaged; "
            "fetch or write it again."
        ) from error
    if min(image.size) < 1:
        raise BadPictureError(f"{where}: the picture has no pixels; fetch or write it again.")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode Pillow decodes to 8-bit RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit greyscale (and Pillow's 32-bit form of it): keep the upper eight bits.
        image = image.convert("F").point(lambda value: value / 256.0).convert("L")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        layers = image.convert("RGBA")
        paper = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, layers).convert("RGB")
    return image.convert("RGB")
