"""Printed documents (lines, receipts, forms) in real fonts, asked about as DocVQA does.

Design decisions:

- Words come from the closed vocabulary, records are drawn at random. A record (all that a document
  says) is its entity, and the builder never prints a record in two splits.
- Fonts are the text faces that ship with matplotlib: sans, serif and mono, upright, bold and
  oblique, from three families that look different.
- A row of text fills a row of cells; columns start near the left edge of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from manyeyes.data.dataset.annotation import SceneObject
from manyeyes.data.sources.starter.drawing import (
    CELL,
    UNITS,
    Drawing,
    Question,
    choose,
    enumerate_words,
    font,
    ink,
    paper,
    pick,
)
from manyeyes.data.sources.starter.vocabulary import (
    CITIES,
    FAMILY_NAMES,
    FORM_LABELS,
    ITEMS,
    NAMES,
    ORDINALS,
)

if TYPE_CHECKING:
    import numpy as np

FONTS: tuple[tuple[str, float], ...] = (
    ("DejaVuSans", 1.0),
    ("DejaVuSans-Bold", 0.95),
    ("DejaVuSans-Oblique", 1.0),
    ("DejaVuSerif", 1.0),
    ("DejaVuSerif-Bold", 0.92),
    ("DejaVuSansMono", 1.0),
    ("STIXGeneral", 1.2),
    ("STIXGeneralBol", 1.15),
    ("cmss10", 1.2),
    ("cmr10", 1.2),
)
"""Font and a factor on its size, so that their letters come out about equally large."""

LEFT, RIGHT = 0, 4
"""Columns of cells where text starts."""


@dataclass(frozen=True)
class Entry:
    """Words printed at one place."""

    row: int
    column: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """What a document says, before it is printed."""

    entity: str
    entries: tuple[Entry, ...]
    """Rows counted from the document's own first row."""
    caption: str
    questions: tuple[Question, ...]
    ruled: bool


def compose_document(rng: np.random.Generator, fewest_words: int) -> Record:
    """Write a random document of at least ``fewest_words`` words."""
    match choose(rng, ("lines", "receipt", "form")):
        case "lines":
            return _compose_lines(rng, fewest_words)
        case "receipt":
            return _compose_receipt(rng)
        case _:
            return _compose_form(rng)


def draw_document(rng: np.random.Generator, record: Record, image_size: int) -> Drawing:
    """Print a record in one font at a random height on the page."""
    unit = image_size / UNITS
    name, factor = choose(rng, FONTS)
    pixels = round(float(rng.uniform(11.0, 13.0)) * factor * unit * 2) / 2
    face = font(name, pixels)
    colour = ink(rng)
    image = Image.new("RGB", (image_size, image_size), paper(rng))
    pen = ImageDraw.Draw(image)
    num_rows = 1 + max(entry.row for entry in record.entries)
    first_row = int(rng.integers(0, UNITS // CELL - num_rows + 1))
    margin = float(rng.uniform(1, 5))
    shift = float(rng.uniform(-1, 1))
    objects = []
    for entry in record.entries:
        x = (entry.column * CELL + margin) * unit
        middle = ((first_row + entry.row + 0.5) * CELL + shift) * unit
        # "x" sits between baseline and the height of small letters in every font.
        baseline = round(middle + 0.36 * pixels / factor)
        for word in entry.words:
            pen.text((x, baseline), word, fill=colour, font=face, anchor="ls")
            left, top, right, bottom = face.getbbox(word, anchor="ls")
            bare = word.rstrip(":")
            box = (x + left, baseline + top, x + right, baseline + min(bottom, 1))
            objects.append(SceneObject("number" if bare.isdigit() else "word", bare, "", box))
            x += face.getlength(word + " ")
    if record.ruled:
        height = round((first_row + num_rows - 1) * CELL * unit)
        pen.line([(2 * unit, height), (image_size - 3 * unit, height)], fill=(170, 170, 170))
    return Drawing(
        image=image,
        kind="documents",
        source="documents",
        objects=tuple(objects),
        entities=(record.entity,),
        caption=record.caption,
        questions=record.questions,
    )


def _compose_lines(rng: np.random.Generator, fewest_words: int) -> Record:
    """Write one line of one or two words, or two to five lines of one word."""
    pool = (*NAMES, *CITIES, *ITEMS)
    count = int(rng.integers(1, 6))
    if count == 1:
        words = pick(rng, pool, max(fewest_words, int(rng.integers(1, 3))))
        column = int(rng.integers(0, 3 if len(words) == 1 else 1))
        text = " ".join(words)
        return Record(
            "lines:" + text,
            (Entry(0, column, tuple(words)),),
            f"The text says {text}.",
            (
                Question("lines", "What is written?", text),
                Question("lines", "What does the text say?", text),
            ),
            ruled=False,
        )
    words = pick(rng, pool, count)
    column = int(rng.integers(0, 5))
    questions = []
    for place, word in enumerate(words):
        questions += [
            Question("lines", f"What is the {ORDINALS[place]} word?", word),
            Question("lines", f"Which word is in the {ORDINALS[place]} line?", word),
        ]
    questions.append(Question("lines", "What is the last word?", words[-1]))
    return Record(
        "lines:" + "/".join(words),
        tuple(Entry(row, column, (word,)) for row, word in enumerate(words)),
        f"The lines say {enumerate_words(words)}.",
        tuple(questions),
        ruled=False,
    )


def _compose_receipt(rng: np.random.Generator) -> Record:
    """Write two to four items with prices, and their total."""
    items = pick(rng, ITEMS, int(rng.integers(2, 5)))
    prices = [int(rng.integers(1, 99 // len(items) + 1)) for _ in items]
    total = sum(prices)
    column = RIGHT + int(rng.integers(0, 3))
    headed = int(rng.random() < 0.5)
    entries = [Entry(0, LEFT, ("bill",))] if headed else []
    questions = []
    rows = [*zip(items, prices, strict=True), ("total", total)]
    for row, (item, price) in enumerate(rows):
        entries.append(Entry(row + headed, LEFT, (item,)))
        entries.append(Entry(row + headed, column, (str(price),)))
    for place, (item, price) in enumerate(zip(items, prices, strict=True)):
        questions += [
            Question("receipt", f"What is the price of the {item}?", str(price)),
            Question("receipt", f"How much is the {item}?", str(price)),
            Question("receipt", f"What is the {ORDINALS[place]} item?", item),
        ]
    # Said twice, or a total would be asked for once in ten questions.
    questions += [
        Question("receipt", "What is the total?", str(total)),
        Question("receipt", "How much is the total?", str(total)),
    ]
    said = ", ".join(f"{item} {price}" for item, price in rows)
    return Record(
        f"receipt:{said}", tuple(entries), f"A receipt: {said}.", tuple(questions), ruled=True
    )


def _compose_form(rng: np.random.Generator) -> Record:
    """Write three to five labelled fields; one name in four has two words."""
    labels = pick(rng, FORM_LABELS, int(rng.integers(3, 6)))
    values = {label: _field_value(rng, label) for label in labels}
    mark = choose(rng, ("", ":"))
    headed = int(rng.random() < 0.4)
    entries = [Entry(0, LEFT, ("form",))] if headed else []
    questions = []
    for row, (label, words) in enumerate(values.items()):
        entries.append(Entry(row + headed, LEFT, (label + mark,)))
        entries.append(Entry(row + headed, RIGHT - 1, words))
        questions += [
            Question("form", f"What is the {label}?", " ".join(words)),
            Question("form", f"Which {label} is on the form?", " ".join(words)),
        ]
    said = ", ".join(f"{label} {' '.join(words)}" for label, words in values.items())
    return Record(f"form:{said}", tuple(entries), f"A form: {said}.", tuple(questions), ruled=False)


def _field_value(rng: np.random.Generator, label: str) -> tuple[str, ...]:
    match label:
        case "name":
            given = choose(rng, NAMES)
            return (given, choose(rng, FAMILY_NAMES)) if rng.random() < 0.25 else (given,)
        case "city":
            return (choose(rng, CITIES),)
        case "item":
            return (choose(rng, ITEMS),)
        case _:
            return (str(int(rng.integers(1, 100))),)
