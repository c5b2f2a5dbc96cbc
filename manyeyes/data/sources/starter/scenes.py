"""Scenes of coloured shapes: colour, relation and counting questions, and presence for POPE.

Design decisions:

- Objects are not equally frequent and do not meet at random: POPE's "popular" and "adversarial"
  questions (Li et al., 2023, "Evaluating Object Hallucination in Large Vision-Language Models",
  section 5.1) mean something only where some objects are common and some go together. Each scene
  has a theme, a handful of objects it prefers.
- A scene's entity is its sorted list of objects; the builder never uses a list in two splits.
- Scenes are drawn at three times their size and reduced, which smooths edges without a library.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from manyeyes.data.dataset.annotation import SceneObject
from manyeyes.data.sources.starter.drawing import (
    UNITS,
    Box,
    Colour,
    Drawing,
    Question,
    article,
    choose,
    enumerate_words,
    paper,
    scale_box,
    tint,
)
from manyeyes.data.sources.starter.vocabulary import COLOURS, COUNT_WORDS, SHAPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

Thing = tuple[str, str]
"""(colour, shape)"""

THINGS: tuple[Thing, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_SAMPLING = 3
_GAP = 4.0
_APART = 20.0
"""Two objects are left/right (above/below) of each other if their middles are this far apart."""


@dataclass(frozen=True)
class Placed:
    """An object and where it lies, in layout units."""

    colour: str
    shape: str
    box: Box

    @property
    def middle(self) -> tuple[float, float]:
        """Return (x, y) of the box's middle."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def name_thing(thing: Thing) -> str:
    """Return "red circle"."""
    return f"{thing[0]} {thing[1]}"


def compose_scene(rng: np.random.Generator, fewest: int) -> tuple[Thing, ...]:
    """Choose ``fewest`` to six objects.

    One scene in three repeats a colour or a shape on purpose, or there would be little to count.
    """
    num_objects = int(rng.integers(fewest, 7))
    theme = int(rng.integers(_NUM_THEMES))
    things = [_draw_thing(rng, theme)]
    habit = choose(rng, ("none", "none", "none", "none", "colour", "shape"))
    while len(things) < num_objects:
        colour, shape = _draw_thing(rng, theme)
        if rng.random() < 0.75:
            colour = things[0][0] if habit == "colour" else colour
            shape = things[0][1] if habit == "shape" else shape
        things.append((colour, shape))
    return tuple(things)


def scene_entity(things: tuple[Thing, ...]) -> str:
    """Return the name of a scene: its objects, sorted, whatever their places."""
    return "scene:" + ",".join(sorted(f"{colour}_{shape}" for colour, shape in things))


def draw_scene(rng: np.random.Generator, things: tuple[Thing, ...], image_size: int) -> Drawing:
    """Place the objects without overlap, draw them, and list what can be asked."""
    placed = _place(rng, things)
    unit = image_size / UNITS
    edge = image_size * _SAMPLING
    image = Image.new("RGB", (edge, edge), paper(rng))
    pen = ImageDraw.Draw(image)
    for one in placed:
        _draw_shape(pen, one.shape, scale_box(one.box, unit * _SAMPLING), tint(rng, one.colour))
    objects = tuple(
        SceneObject("shape", one.shape, one.colour, scale_box(one.box, unit)) for one in placed
    )
    return Drawing(
        image=image.resize((image_size, image_size), Image.Resampling.BOX),
        kind="scenes",
        source="scenes",
        objects=objects,
        entities=(scene_entity(things),),
        caption=_caption(rng, placed),
        questions=(*colour_questions(placed), *relation_questions(placed), *counting(placed)),
    )


def _themes() -> NDArray[np.float64]:
    """Return the chance of each object under each theme: (themes, objects).

    Fixed for all seeds: it is part of the world, as streets have cars and kitchens have spoons.
    """
    rng = np.random.default_rng(20231)
    frequency = 1.0 / (10.0 + rng.permutation(len(THINGS)))
    chances = np.tile(frequency / frequency.sum(), (_NUM_THEMES, 1)) * 0.6
    for theme in range(_NUM_THEMES):
        favourites = rng.choice(len(THINGS), size=5, replace=False)
        chances[theme, favourites] += 0.4 / 5
    shares: NDArray[np.float64] = chances / chances.sum(axis=1, keepdims=True)
    return shares


_NUM_THEMES = 12
_CHANCES = np.cumsum(_themes(), axis=1)


def _draw_thing(rng: np.random.Generator, theme: int) -> Thing:
    return THINGS[min(int(np.searchsorted(_CHANCES[theme], rng.random())), len(THINGS) - 1)]


def _place(rng: np.random.Generator, things: tuple[Thing, ...]) -> list[Placed]:
    """Find places by trial; start over with smaller objects when a scene gets stuck."""
    largest = 42.0 if len(things) < 4 else 32.0
    while True:
        placed: list[Placed] = []
        for colour, shape in things:
            box = _free_box(rng, placed, largest)
            if box is None:
                break
            placed.append(Placed(colour, shape, box))
        if len(placed) == len(things):
            return placed
        largest = max(22.0, largest - 3.0)


def _free_box(rng: np.random.Generator, placed: list[Placed], largest: float) -> Box | None:
    for _ in range(30):
        size = float(rng.uniform(20.0, largest))
        left, top = (float(value) for value in rng.uniform(2.0, UNITS - 2.0 - size, size=2))
        box = (left, top, left + size, top + size)
        if all(_separate(box, other.box) for other in placed):
            return box
    return None


def _separate(one: Box, other: Box) -> bool:
    return (
        one[2] + _GAP <= other[0]
        or other[2] + _GAP <= one[0]
        or one[3] + _GAP <= other[1]
        or other[3] + _GAP <= one[1]
    )


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, box: Box, colour: Colour) -> None:
    left, top, right, bottom = box
    width = right - left
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    match shape:
        case "circle":
            pen.ellipse(box, fill=colour)
        case "square":
            pen.rectangle(box, fill=colour)
        case "triangle":
            pen.polygon([(middle_x, top), (right, bottom), (left, bottom)], fill=colour)
        case "star":
            pen.polygon(_star(middle_x, middle_y, width / 2), fill=colour)
        case "cross":
            third = width / 3
            pen.rectangle((left + third, top, right - third, bottom), fill=colour)
            pen.rectangle((left, top + third, right, bottom - third), fill=colour)
        case "ring":
            pen.ellipse(box, outline=colour, width=round(width * 0.22))
        case _:
            raise AssertionError(shape)


def _star(middle_x: float, middle_y: float, radius: float) -> list[tuple[float, float]]:
    """Return the ten corners of a five-pointed star."""
    corners = []
    for corner in range(10):
        reach = radius if corner % 2 == 0 else radius * 0.45
        angle = math.pi * corner / 5
        corners.append((middle_x + reach * math.sin(angle), middle_y - reach * math.cos(angle)))
    return corners


def _caption(rng: np.random.Generator, placed: list[Placed]) -> str:
    """Name all objects; with two different ones, half of the time where they lie."""
    things = [(one.colour, one.shape) for one in placed]
    if len(set(things)) == 2 == len(things) and rng.random() < 0.5:
        for side, one, other in _pairs(placed):
            first, second = (article(f"{each.colour} {each.shape}") for each in (one, other))
            return f"{first.capitalize()} {_SIDES[side]} {second}."
    counted = Counter(things)
    names = [
        article(name_thing(thing)) if count == 1 else f"{COUNT_WORDS[count]} {name_thing(thing)}s"
        for thing, count in counted.items()
    ]
    sentence = enumerate_words([name.replace("crosss", "crosses") for name in names]) + "."
    return sentence[0].upper() + sentence[1:]


_SIDES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


def _pairs(placed: list[Placed]) -> list[tuple[str, Placed, Placed]]:
    """List every (side, one, other) where one clearly lies on that side of other."""
    found = []
    for one in placed:
        for other in placed:
            dx = other.middle[0] - one.middle[0]
            dy = other.middle[1] - one.middle[1]
            # The larger offset decides; a diagonal pair has no clear side.
            if abs(dx) >= _APART and abs(dx) > 1.3 * abs(dy):
                found.append(("left" if dx > 0 else "right", one, other))
            if abs(dy) >= _APART and abs(dy) > 1.3 * abs(dx):
                found.append(("above" if dy > 0 else "below", one, other))
    return found


def colour_questions(placed: list[Placed]) -> list[Question]:
    """Ask for the colour of the only circle, and for the shape of the only red thing."""
    shapes = Counter(one.shape for one in placed)
    colours = Counter(one.colour for one in placed)
    questions = []
    for one in placed:
        if shapes[one.shape] == 1:
            questions += [
                Question("colour", f"What colour is the {one.shape}?", one.colour),
                Question("colour", f"Which colour does the {one.shape} have?", one.colour),
            ]
        if colours[one.colour] == 1:
            questions.append(Question("colour", f"What shape is {one.colour}?", one.shape))
    return questions


def relation_questions(placed: list[Placed]) -> list[Question]:
    """Ask for the side of one object seen from another, and for what lies on a side."""
    counted = Counter((one.colour, one.shape) for one in placed)
    pairs = [
        (side, one, other)
        for side, one, other in _pairs(placed)
        if counted[one.colour, one.shape] == counted[other.colour, other.shape] == 1
    ]
    questions = []
    for side, one, other in pairs:
        asked = "left or right of" if side in {"left", "right"} else "above or below"
        here, there = f"{one.colour} {one.shape}", f"{other.colour} {other.shape}"
        questions.append(Question("relation", f"Is the {here} {asked} the {there}?", side))
        # "What is left of ...?" has one answer only where no third object could be meant.
        if len(placed) == 2:
            questions.append(Question("relation", f"What is {_SIDES[side]} the {there}?", here))
    return questions


def counting(placed: list[Placed]) -> list[Question]:
    """Ask how many objects have a colour or a shape (of those present, once or more)."""
    questions = [Question("counting", "How many shapes are there?", str(len(placed)))]
    for shape, count in Counter(one.shape for one in placed).items():
        plural = "crosses" if shape == "cross" else f"{shape}s"
        questions.append(Question("counting", f"How many {plural} are there?", str(count)))
    for colour, count in Counter(one.colour for one in placed).items():
        questions.append(Question("counting", f"How many {colour} shapes are there?", str(count)))
    return questions
