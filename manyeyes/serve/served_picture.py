"""Pictures that come with a request to a served model: their bytes, never a name of a file.

A server answers strangers. A path in a request would let them read its disk, or wait for a device
of it for ever; so a text is taken for bytes in base64, and for nothing else.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from manyeyes.data.dataset.images import decode_for_model
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from manyeyes.data.dataset.images import Picture

_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
_PNG_MODES = ("1", "L", "LA", "I", "P", "RGB", "RGBA", "I;16")


def read_served(value: object, column: str) -> Picture | None:
    """Read the picture of one row as a model sees it.

    Args:
        value: bytes of a picture file; the same in base64, alone or as a data URL; a picture of
            Pillow; None or NaN for no picture.
        column: where it stands, for an error.

    Raises:
        UserError: it is something else, such as the path of a file, or not a whole picture.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None  # how a table says that an optional column is absent
    if isinstance(value, str):
        value = _decoded(value, column)
    elif isinstance(value, Image.Image):
        value = _written(value, column)
    if not isinstance(value, bytes | bytearray | memoryview):
        raise UserError(
            f"{column} holds a {type(value).__name__}: give the bytes of a picture file, the same "
            "in base64 or as a data URL, or a picture of Pillow."
        )
    return decode_for_model(bytes(value), column)


def _decoded(text: str, column: str) -> bytes:
    """Return the bytes that a text stands for."""
    prefix = _DATA_URL.match(text)
    encoded = "".join(text[prefix.end() if prefix else 0 :].split())
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(
            f"{column} is not base64: encode the bytes of the picture file; a served model opens "
            "no file by its path."
        ) from None


def _written(image: Image.Image, column: str) -> bytes:
    """Return a picture of Pillow as a file: it is then read as every other one."""
    file = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        kept = upright if upright.mode in _PNG_MODES else upright.convert("RGB")
        kept.save(file, "PNG", compress_level=1)
    except (OSError, ValueError, SyntaxError):
        raise UserError(
            f"{column}: the picture is truncated or damaged and cannot be decoded; "
            "fetch or write it again."
        ) from None
    return file.getvalue()
