"""Images that a caller in this process gives: paths, images of Pillow, bytes, or a list of them.

They are decoded as the images of a training are (``decode_for_model``), so a model sees the same of
a file whoever shows it. A caller may name files; a request to a server may not
(``served_picture``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image

from manyeyes.errors import UserError
from manyeyes.serve.chat import read_picture
from manyeyes.serve.served_picture import read_served

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyeyes.data.dataset.images import Picture

GivenImage: TypeAlias = str | Path | bytes | Image.Image
"""A path of a file, the bytes of one, or an image of Pillow."""


def read_images(given: GivenImage | Sequence[GivenImage] | None) -> list[Picture]:
    """Read images as a model sees them; none for None.

    Raises:
        UserError: one is something else, or cannot be decoded; the error names its place.
    """
    if given is None:
        return []
    if isinstance(given, list | tuple):
        return [_read(one, f"image {number}") for number, one in enumerate(given, 1)]
    return [_read(given, "image")]


def _read(given: object, name: str) -> Picture:
    match given:
        case str() | Path():
            return read_picture(Path(given))
        case bytes() | bytearray() | memoryview() | Image.Image():
            picture = read_served(given, name)
            assert picture is not None
            return picture
    raise UserError(
        f"{name} is a {type(given).__name__}: give the path of an image file, its bytes, an image "
        "of Pillow, or a list of these."
    )
