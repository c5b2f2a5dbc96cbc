"""The closed vocabulary of the starter data.

Design decisions:

- A language model of 1.7 million parameters has to learn every word here in minutes, so there are
  few, and no two of them differ by one letter only (a reader that confuses "tea" with "sea" would
  look like a reader that cannot see).
- Printed words are three to six letters long: at 11 to 13 pixels they span two to four of the
  16-pixel cells that become the visual tokens of a 128-pixel picture.
- The same words are the classes of dense pretraining and the text of written-out scenes
  (:func:`scene_words`), so encoders and language model meet on one list.
"""

from __future__ import annotations

from manyeyes.data.dataset.annotation import EMPTY_CELL

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 32),
    "green": (34, 150, 58),
    "blue": (36, 82, 214),
    "yellow": (240, 206, 24),
    "orange": (244, 132, 16),
    "purple": (128, 44, 168),
    "pink": (246, 128, 186),
    "black": (24, 24, 24),
}
"""Colour name to its sRGB centre; drawings jitter around it."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")

NAMES: tuple[str, ...] = (
    "anna", "boris", "clara", "david", "emma", "frank", "greta", "hugo", "irene", "julia",
    "kevin", "laura",
)  # fmt: skip
FAMILY_NAMES: tuple[str, ...] = ("lee", "cook", "ross", "hunt", "webb", "king")
CITIES: tuple[str, ...] = (
    "paris", "rome", "berlin", "oslo", "vienna", "madrid", "athens", "dublin", "london", "zurich",
)  # fmt: skip
ITEMS: tuple[str, ...] = (
    "tea", "milk", "bread", "cheese", "apple", "rice", "soup", "cake", "fish", "honey", "juice",
    "salad",
)  # fmt: skip
FORM_LABELS: tuple[str, ...] = ("name", "city", "age", "item", "room")
"""Left column of a form. ``age`` and ``room`` have whole numbers as values."""
PRINTED_EXTRA: tuple[str, ...] = ("total", "form", "list", "bill")
"""Words printed on documents besides names, cities, items and labels."""
CHART_TITLES: tuple[str, ...] = (
    "petal", "sepal", "ash", "malic", "radius", "texture", "years", "body",
)  # fmt: skip
"""One word for the measured quantity, printed above some charts."""

ORDINALS: tuple[str, ...] = ("first", "second", "third", "fourth", "fifth", "sixth")
COUNT_WORDS: tuple[str, ...] = ("no", "one", "two", "three", "four", "five", "six")
NUMBERS: tuple[int, ...] = tuple(range(100))
"""Whole numbers printed on charts and documents."""


def printed_words() -> tuple[str, ...]:
    """Return every word (no numbers) that a document or chart can show, in a fixed order."""
    groups = (NAMES, FAMILY_NAMES, CITIES, ITEMS, FORM_LABELS, PRINTED_EXTRA, CHART_TITLES)
    return tuple(dict.fromkeys(word for group in groups for word in group))


def printed_number(value: int) -> str:
    """Return the scene word of a printed whole number: 37 is ``n37`` (a scanned digit is ``4``)."""
    return f"n{value}"


def scene_words() -> tuple[str, ...]:
    """Return every word that a cell of a written-out scene can hold, in a fixed order.

    The first is the empty cell's; then scanned digits, coloured shapes, coloured bars, printed
    words and printed numbers. The position in this list is the class index of dense pretraining.
    """
    digits = [str(digit) for digit in range(10)]
    shapes = [f"{colour}_{shape}" for colour in COLOURS for shape in SHAPES]
    bars = [f"{colour}_bar" for colour in COLOURS]
    numbers = [printed_number(value) for value in NUMBERS]
    return (EMPTY_CELL, *digits, *shapes, *bars, *printed_words(), *numbers)
