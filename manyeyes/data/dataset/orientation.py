"""How a camera was held, by a picture's own EXIF data.

Sensors do not turn with the camera: a photograph taken upright is often stored lying on its side,
with a number that says how to turn it. Viewers, browsers and the people who write the questions see
it turned, so the models do, too.

Only that one number is read, here and not by Pillow: Pillow parses everything, warns of what has
nothing to do with it, and decodes a whole PNG to get at it.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

UPRIGHT = 1
_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
"""The orientations that exchange width and height."""
_EXIF = b"Exif\x00\x00"
_XMP = b"http://ns.adobe.com/xap/1.0/\x00"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))


def orientation(data: bytes) -> int:
    """Return a picture file's EXIF orientation, 1 to 8; 1 where it has none that makes sense.

    Args:
        data: a JPEG, PNG or WebP file; of any other the answer is 1.
    """
    exif: list[bytes] = []
    xmp: list[bytes] = []
    for kind, block in _blocks(data):
        (exif if kind == "exif" else xmp).append(block)
    found = next((number for number in map(in_exif, exif) if number), 0)
    if not found:
        written = next((match for match in map(_XMP_ORIENTATION.search, xmp) if match), None)
        found = int(written.group(1)) if written else UPRIGHT
    return found


def in_exif(block: bytes) -> int:
    """Return the orientation of a block of EXIF data (a TIFF file's first directory); 0 if none."""
    block = block.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    try:
        if order is None:
            return 0
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for number in range(count):
            tag, kind = struct.unpack_from(f"{order}HH", block, start + 2 + 12 * number)
            if tag == _TAG:
                form = {3: "H", 4: "I"}.get(kind, "H")
                (value,) = struct.unpack_from(f"{order}{form}", block, start + 10 + 12 * number)
                return int(value) if 1 <= value <= 8 else 0
    except struct.error:  # it is cut off
        return 0
    return 0


def turned_size(size: tuple[int, int], number: int) -> tuple[int, int]:
    """Return (width, height) once a picture is turned upright."""
    return size[::-1] if number in _SIDEWAYS else size


def turn(values: Any, number: int) -> Any:  # noqa: ANN401  # numpy's arrays, whatever they hold
    """Turn rows and columns of values (height, width, ...) upright; a view of them."""
    if number in _SIDEWAYS:
        values = values.swapaxes(0, 1)
    # What is left is to mirror left and right, or top and bottom, or both.
    across = number in (2, 3, 6, 7)
    down = number in (3, 4, 7, 8)
    if across:
        values = values[:, ::-1]
    return values[::-1] if down else values


def _blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the blocks of EXIF and of XMP data that a file holds."""
    if data.startswith(b"\xff\xd8"):
        yield from _jpeg_blocks(data)
    elif data.startswith(b"\x89PNG"):
        for kind, start, end in png_chunks(data):
            if kind == b"eXIf":
                yield "exif", data[start:end]
            elif kind == b"iTXt" and data[start : start + 18] == b"XML:com.adobe.xmp\x00":
                yield "xmp", data[start:end]
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        yield from _webp_blocks(data)


def _jpeg_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Walk the segments of a JPEG up to its pixels."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:  # the pixels begin
            return
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xE1:
            block = data[place + 4 : end]
            if block.startswith(_EXIF):
                yield "exif", block
            elif block.startswith(_XMP):
                yield "xmp", block
        place = max(end, place + 4)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Walk the chunks of a PNG file: kind, first byte of the content, and the byte behind it."""
    place = 8
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(data):
            return
        yield data[place + 4 : place + 8], place + 8, end
        place = end + 4


def _webp_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    place = 12
    while place + 8 <= len(data):
        kind, length = (
            data[place : place + 4],
            int.from_bytes(data[place + 4 : place + 8], "little"),
        )
        if kind in (b"EXIF", b"XMP "):
            block = data[place + 8 : place + 8 + length]
            yield ("exif" if kind == b"EXIF" else "xmp"), block
        place += 8 + length + length % 2
