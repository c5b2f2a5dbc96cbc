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
- The decoder is picked from the first bytes, never from a file name, out of ten formats. Pillow
  knows several dozen more, some of which start other programs; a dataset has no use for them.
- A picture is turned upright as its EXIF orientation says (``orientation``), everywhere alike: in
  its size, for people and for models.
- Of a PNG only what its pixels need is given to Pillow: a colour profile or a text of megabytes is
  no reason to refuse a picture, and unpacking it is no use.
- The result is always 8-bit RGB: the first frame of an animation, transparency over white, 16-bit
  greyscale scaled (Pillow's own conversion would clip it to white).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.IcoImagePlugin import IcoImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from manyeyes.data.dataset.orientation import (
    UPRIGHT,
    in_exif,
    orientation,
    png_chunks,
    turn,
    turned_size,
)
from manyeyes.errors import UserError
from manyeyes.runtime.filetypes import HEAD_BYTES, another_thing

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

# What a camera wrote beside a picture, and wrote badly, is of no interest to a user.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Picture: TypeAlias = "Image.Image | NDArray[numpy.uint8]"
"""A picture as a model sees it: of a JPEG RGB values (height, width, 3), else Pillow's."""

MAX_PIXELS = 64_000_000
"""The limit where no recipe states one: an 8,000 x 8,000 picture."""

_JPEG_MAGIC = b"\xff\xd8\xff"
_TURBO_COLOURS = ("YCbCr", "Gray", "RGB")
"""The others (CMYK, YCCK) come inverted from some programs, which Pillow knows of."""
_READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO or PPM"
_PIXEL_CHUNKS = frozenset(
    (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"sBIT")
)
"""The chunks of a PNG file that say something about its pixels."""

# What Pillow raises for damaged files; it has no common base class.
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip


class BadPictureError(UserError):
    """The bytes of one picture are not what they should be; no repetition changes that."""


@dataclass(frozen=True)
class ImageFormat:
    """One kind of picture file this product reads."""

    name: str
    suffix: str
    magic: bytes
    """The first bytes of such a file."""
    reader: Callable[[bytes], ImageFile]
    """Parses the header; pixels are decoded when they are asked for."""
    brands: tuple[bytes, ...] = (b"",)
    """More bytes to find, one of these: WebP shares its first ones with other RIFF files."""
    brand_at: int = 0

    def matches(self, data: bytes) -> bool:
        """Tell whether ``data`` starts like a file of this format."""
        return data.startswith(self.magic) and any(
            data.startswith(brand, self.brand_at) for brand in self.brands
        )


def _reader(kind: type[ImageFile]) -> Callable[[bytes], ImageFile]:
    return lambda data: kind(io.BytesIO(data))


def _png(data: bytes) -> ImageFile:
    """Open a PNG file without what it holds beside its pixels."""
    chunks = list(png_chunks(data))
    if all(kind in _PIXEL_CHUNKS for kind, _, _ in chunks):
        return PngImageFile(io.BytesIO(data))
    kept = [data[start - 8 : end + 4] for kind, start, end in chunks if kind in _PIXEL_CHUNKS]
    rest = chunks[-1][2] + 4  # what is cut off is Pillow's to judge
    return PngImageFile(io.BytesIO(b"".join([data[:8], *kept, data[rest:]])))


def _ico(data: bytes) -> ImageFile:
    """Open the largest picture of an icon; the list of an ICO file may lie about its size."""
    icon = IcoImageFile(io.BytesIO(data))
    inner = icon.ico.getimage(icon.size)
    icon._size = inner.size
    return icon


_AVIF = (b"ftypavif", b"ftypavis")
FORMATS: tuple[ImageFormat, ...] = (
    ImageFormat("PNG", ".png", b"\x89PNG\r\n\x1a\n", _png),
    ImageFormat("JPEG", ".jpg", _JPEG_MAGIC, _reader(JpegImageFile)),
    ImageFormat("WebP", ".webp", b"RIFF", _reader(WebPImageFile), (b"WEBP",), 8),
    ImageFormat("GIF", ".gif", b"GIF8", _reader(GifImageFile)),
    ImageFormat("BMP", ".bmp", b"BM", _reader(BmpImageFile)),
    ImageFormat("TIFF", ".tif", b"II", _reader(TiffImageFile), (b"*\0", b"+\0"), 2),
    ImageFormat("TIFF", ".tif", b"MM", _reader(TiffImageFile), (b"\0*", b"\0+"), 2),
    ImageFormat("AVIF", ".avif", b"", _reader(AvifImageFile), _AVIF, 4),
    ImageFormat("JPEG 2000", ".jp2", b"\0\0\0\x0cjP  \r\n\x87\n", _reader(Jpeg2KImageFile)),
    ImageFormat("JPEG 2000", ".j2k", b"\xff\x4f\xff\x51", _reader(Jpeg2KImageFile)),
    ImageFormat("ICO", ".ico", b"\0\0\1\0", _ico),
    ImageFormat(
        "PPM", ".ppm", b"P", _reader(PpmImageFile),
        tuple(b"%d%c" % (kind, blank) for kind in range(1, 7) for blank in b" \t\r\n#"), 1,
    ),
)  # fmt: skip


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
    other = another_thing(data[:HEAD_BYTES])
    if other is not None:
        raise BadPictureError(f"{where}: the file is {other}.")
    problem = "the file is empty" if not data else "the file is not a picture"
    raise BadPictureError(f"{where}: {problem}; give it as {_READABLE}.")


def read_size(data: bytes, where: str) -> tuple[int, int]:
    """Read (width, height) in pixels, held upright, from a picture's header, decoding nothing.

    Raises:
        BadPictureError: if it is not a picture, or its header is damaged.
    """
    image = _open(data, where)
    return turned_size(image.size, _orientation(data, image))


def is_turned(data: bytes) -> bool:
    """Tell whether a readable picture is stored otherwise than it is to be seen."""
    image = _open(data, "picture")
    if isinstance(image, TiffImageFile):
        return image.tag_v2.get(0x0112, UPRIGHT) in range(2, 9)
    return _orientation(data, image) != UPRIGHT


def decode(data: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to 8-bit RGB, turned upright, or say in one sentence why not.

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
        return _turned(_to_rgb(image, where), _orientation(data, image))
    except BadPictureError:
        raise
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
    except ValueError:
        return None
    number = orientation(data)
    if number == UPRIGHT:
        return values
    import numpy

    return numpy.ascontiguousarray(turn(values, number))


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
        image = image_format.reader(data)
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise BadPictureError(
            f"{where}: the header of this {image_format.name} file is damaged; "
            "fetch or write it again."
        ) from error
    if min(image.size) < 1:
        raise BadPictureError(f"{where}: the picture has no pixels; fetch or write it again.")
    return image


def _orientation(data: bytes, image: ImageFile) -> int:
    """Return how to turn a picture as Pillow decodes it; it turns a TIFF by itself."""
    if isinstance(image, AvifImageFile):
        return in_exif(image.info.get("exif", b"")) or UPRIGHT
    return orientation(data)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turned(image: Image.Image, number: int) -> Image.Image:
    return image if number == UPRIGHT else image.transpose(_TURNS[number])


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    """Convert any mode Pillow decodes to 8-bit RGB.

    Raises:
        BadPictureError: its values are no colours of 8 or 16 bits.
    """
    if image.mode == "F" or (image.mode == "I" and not _is_16_bit(image)):
        raise BadPictureError(
            f"{where}: the picture holds numbers of 32 bits; save it with 8 or 16 bits a colour."
        )
    if image.mode.startswith("I"):
        # 16-bit greyscale (and Pillow's 32-bit form of it): keep the upper eight bits.
        image = image.convert("F").point(lambda value: value / 256.0).convert("L")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        layers = image.convert("RGBA")
        paper = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, layers).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:  # CIE Lab, for example
        raise BadPictureError(
            f"{where}: the picture's colours are {image.mode}; save it in RGB."
        ) from None


def _is_16_bit(image: Image.Image) -> bool:
    extrema: Any = image.getextrema()  # of one band: two numbers
    low, high = extrema
    return bool(low >= 0 and high <= 0xFFFF)
