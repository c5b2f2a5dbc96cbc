"""Whole numbers composed from real handwritten digit scans.

Scans of 8 x 8 pixels are enlarged to about one cell of the grid each. A picture shows one number,
or two, one above the other; questions over two pictures are put together by the builder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from manyeyes.data.dataset.annotation import SceneObject
from manyeyes.data.sources.starter.drawing import (
    CELL,
    UNITS,
    Colour,
    Drawing,
    Question,
    choose,
    ink,
    paper,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from manyeyes.data.sources.starter.sources import Material, Scan

_VISIBLE = 0.3
"""Ink darker than this counts as part of the digit's box."""


@dataclass(frozen=True)
class Number:
    """A handwritten number before it is drawn."""

    value: str
    scans: tuple[Scan, ...]
    row: int
    """Row of cells."""
    column: int
    """Column of cells of its first digit."""


def draw_number(rng: np.random.Generator, material: Material, image_size: int) -> Drawing:
    """Draw one number of two to four digits (three times in four), or two."""
    if rng.random() < 0.75:
        numbers = [_compose(rng, material, int(rng.integers(1, 7)))]
    else:
        numbers = [
            _compose(rng, material, int(rng.integers(0, 3))),
            _compose(rng, material, int(rng.integers(5, 8))),
        ]
    image, objects = _render(rng, numbers, image_size)
    return Drawing(
        image=image,
        kind="numbers",
        source="digits",
        objects=objects,
        entities=tuple(dict.fromkeys(scan.entity for one in numbers for scan in one.scans)),
        caption=_caption([one.value for one in numbers]),
        questions=_questions([one.value for one in numbers]),
    )


def _compose(rng: np.random.Generator, material: Material, row: int) -> Number:
    length = int(rng.integers(2, 5))
    digits = [int(rng.integers(1, 10)), *(int(rng.integers(10)) for _ in range(length - 1))]
    scans = tuple(choose(rng, material.scans[digit]) for digit in digits)
    value = "".join(str(digit) for digit in digits)
    return Number(value, scans, row, int(rng.integers(0, UNITS // CELL - length + 1)))


def _render(
    rng: np.random.Generator, numbers: list[Number], image_size: int
) -> tuple[Image.Image, tuple[SceneObject, ...]]:
    """Lay the scans on paper; one picture in five is light ink on dark paper."""
    unit = image_size / UNITS
    coverage = np.zeros((image_size, image_size), dtype=np.float32)
    objects = []
    for number in numbers:
        size = max(6, round(float(rng.uniform(18, 21)) * unit))
        strength = float(rng.uniform(0.8, 1.0))
        shift_x, shift_y = float(rng.uniform(-1.5, 1.5)), float(rng.uniform(-2, 2))
        for place, scan in enumerate(number.scans):
            middle_x = (number.column + place + 0.5) * CELL + shift_x + float(rng.uniform(-1, 1))
            middle_y = (number.row + 0.5) * CELL + shift_y + float(rng.uniform(-1, 1))
            # A digit at the edge moves inwards: cut in half, an 8 is a 3.
            left = min(max(round(middle_x * unit - size / 2), 0), image_size - size)
            top = min(max(round(middle_y * unit - size / 2), 0), image_size - size)
            box = _stamp(coverage, _enlarge(scan.ink, size) * strength, left, top)
            objects.append(SceneObject("digit", str(scan.digit), "", box))
    front, back = ink(rng), paper(rng)
    if rng.random() < 0.2:
        front, back = back, front
    return _blend(coverage, front, back), tuple(objects)


def _enlarge(scan: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Enlarge a scan smoothly to size x size."""
    image = Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC)
    enlarged: NDArray[np.float32] = np.clip(np.asarray(image, np.float32) * 1.15, 0.0, 1.0)
    return enlarged


def _stamp(
    coverage: NDArray[np.float32], digit: NDArray[np.float32], left: int, top: int
) -> tuple[float, float, float, float]:
    """Add a digit's ink to the page and return the box of what is visible of it."""
    size = digit.shape[0]
    page = coverage[top : top + size, left : left + size]
    np.maximum(page, digit, out=page)
    rows, columns = np.nonzero(digit > _VISIBLE)
    return (
        float(left + columns.min()),
        float(top + rows.min()),
        float(left + columns.max() + 1),
        float(top + rows.max() + 1),
    )


def _blend(coverage: NDArray[np.float32], front: Colour, back: Colour) -> Image.Image:
    share = coverage[..., None]
    pixels = share * np.array(front, np.float32) + (1 - share) * np.array(back, np.float32)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _caption(values: list[str]) -> str:
    if len(values) == 1:
        return f"The handwritten number {values[0]}."
    return f"The handwritten number {values[0]} above the number {values[1]}."


def _questions(values: list[str]) -> tuple[Question, ...]:
    if len(values) == 1:
        return (
            Question("single", "Which number is written?", values[0]),
            Question("single", "What number do you see?", values[0]),
            Question("length", "How many digits does the number have?", str(len(values[0]))),
        )
    top, bottom = values
    return (
        Question("top_bottom", "Which number is at the top?", top),
        Question("top_bottom", "What is the top number?", top),
        Question("top_bottom", "Which number is at the bottom?", bottom),
        Question("top_bottom", "What is the bottom number?", bottom),
    )
