"""What every drawing of the starter data returns, and the few pens they share.

Design decisions:

- A drawing knows its objects, a caption and *all* questions that can be asked about it; the
  builder chooses among them, so that it alone balances the answers (a model must not gain by
  guessing blind).
- Layouts are written in units of a 128-pixel picture and scaled to the picture's size. Its 16-unit
  cells become the visual tokens of the tiny models, so rows of text and digits sit near the middle
  of a row of cells, give or take a unit or two.
- Randomness comes from the generator passed in, never from a global one.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from PIL import Image, ImageFont

from manyeyes.data.sources.starter.vocabulary import COLOURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from manyeyes.data.dataset.annotation import SceneObject

Option = TypeVar("Option")
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

UNITS = 128
"""Edge of a picture in layout units."""
CELL = 16
"""Edge of one cell of the 8 x 8 grid in layout units."""


@dataclass(frozen=True)
class Question:
    """One question about one drawing, with its only answer."""

    subset: str
    text: str
    answer: str


@dataclass(frozen=True)
class Drawing:
    """A picture and everything that can be said about it."""

    image: Image.Image
    kind: str
    """"numbers", "charts", "documents" or "scenes"."""
    source: str
    objects: tuple[SceneObject, ...]
    entities: tuple[str, ...]
    caption: str
    questions: tuple[Question, ...]


def encode_png(image: Image.Image) -> bytes:
    """Write a picture as PNG; the same pixels always give the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def choose(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """Pick one of ``options`` with equal chance."""
    return options[int(rng.integers(len(options)))]


def pick(rng: np.random.Generator, options: Sequence[Option], count: int) -> list[Option]:
    """Pick ``count`` different ones of ``options``, in random order."""
    return [options[int(index)] for index in rng.permutation(len(options))[:count]]


def paper(rng: np.random.Generator) -> Colour:
    """Draw a light background colour."""
    base = int(rng.integers(232, 253))
    red, green, blue = (min(255, base + int(rng.integers(-7, 8))) for _ in range(3))
    return red, green, blue


def ink(rng: np.random.Generator) -> Colour:
    """Draw a dark colour for text and scans."""
    base = int(rng.integers(0, 45))
    red, green, blue = (base + int(rng.integers(0, 25)) for _ in range(3))
    return red, green, blue


def tint(rng: np.random.Generator, name: str, spread: int = 16) -> Colour:
    """Draw a colour near the centre of the named one."""
    red, green, blue = (
        int(min(255, max(0, channel + int(rng.integers(-spread, spread + 1)))))
        for channel in COLOURS[name]
    )
    return red, green, blue


def scale_box(box: Box, factor: float) -> Box:
    """Multiply a box's edges."""
    left, top, right, bottom = box
    return left * factor, top * factor, right * factor, bottom * factor


def font_file(name: str) -> Path:
    """Return the path of a font that ships with matplotlib ("DejaVuSans", "STIXGeneral", ...)."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


@functools.lru_cache(maxsize=64)
def font(name: str, pixels: float) -> ImageFont.FreeTypeFont:
    """Open a font at a size in pixels.

    The basic layout engine is asked for by name: the other one depends on libraries of the machine.
    """
    engine = ImageFont.Layout.BASIC
    return ImageFont.truetype(str(font_file(name)), pixels, layout_engine=engine)


def enumerate_words(words: list[str]) -> str:
    """Join words as English does: "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def article(noun: str) -> str:
    """Put "a" or "an" before a noun."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
