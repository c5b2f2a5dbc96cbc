"""Drills about the grid of a written-out scene: list it, read a line, look beside a thing.

The starter data's questions have answers of two or three tokens, and behind most of them is one
skill: to go from a cell to the next one in some direction. A network of four layers finds that
skill late if nothing but the answers speaks of it. Drills ask for it directly and at length. They
are made from a scene's words alone, so they cost no pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manyeyes.data.dataset.annotation import EMPTY_CELL
from manyeyes.data.dataset.sample import Turn
from manyeyes.data.sources.starter.charts import Bar, chart_questions
from manyeyes.data.sources.starter.drawing import Question, article
from manyeyes.data.sources.starter.scenes import (
    THINGS,
    Placed,
    colour_questions,
    counting,
    name_thing,
    relation_questions,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from manyeyes.data.dataset.annotation import Annotation, SceneObject

Grid = list[list[str]]
STEPS = {"above": (-1, 0), "below": (1, 0), "left of": (0, -1), "right of": (0, 1)}
NOTHING = "nothing"
NUM_LOOKS = 3
NUM_PRESENT = 2
NUM_MORE = 3  # questions of each kind


def spoken(words: Sequence[str]) -> str:
    """Return cells of one line as text: n37 is 37, red_circle is red circle, digits join."""
    text = ""
    before = EMPTY_CELL
    for word in words:
        if word != EMPTY_CELL and (word != before or word.isdigit()):
            joined = word.isdigit() and before.isdigit()
            text += ("" if joined or not text else " ") + say(word)
        before = word
    return text


def say(word: str) -> str:
    """Return one scene word as it is said."""
    if word[0] == "n" and word[1:].isdigit():
        return word[1:]
    return word.replace("_", " ")


def lines(grid: Grid) -> list[str]:
    """Return the lines that show anything; what goes on from the line above is not said again."""
    said = []
    for row, words in enumerate(grid):
        above = grid[row - 1] if row else [EMPTY_CELL] * len(words)
        new = [
            EMPTY_CELL if "_" in word and word == upper else word
            for word, upper in zip(words, above, strict=True)
        ]
        if text := spoken(new):
            said.append(text)
    return said


def look(grid: Grid, row: int, column: int, direction: str) -> str:
    """Return the first thing in a direction that is not the thing itself."""
    down, across = STEPS[direction]
    start = grid[row][column]
    side = len(grid)
    while True:
        row, column = row + down, column + across
        if not (0 <= row < side and 0 <= column < side):
            return NOTHING
        if grid[row][column] not in (EMPTY_CELL, start):
            return say(grid[row][column])


def drill(grid: Grid, chance: random.Random) -> list[Turn]:
    """Return a list of everything, one line, and some looks beside things that occur once."""
    said = lines(grid)
    pairs = [("List everything.", ", ".join(said))]
    place = chance.randrange(len(said))
    pairs.append((f"Read line {place + 1}.", said[place]))
    cells = [
        (row, column)
        for row, words in enumerate(grid)
        for column, word in enumerate(words)
        if word != EMPTY_CELL and not word.isdigit()
    ]
    for row, column in chance.sample(cells, min(NUM_LOOKS, len(cells))):
        direction = chance.choice(list(STEPS))
        found = look(grid, row, column, direction)
        # A wide thing has several cells; the question must have one answer for all of them.
        same = {
            look(grid, other_row, other_column, direction)
            for other_row, other_column in cells
            if grid[other_row][other_column] == grid[row][column]
        } - {NOTHING}
        if same <= {found}:
            pairs.append((f"What is {direction} {say(grid[row][column])}?", found))
    chance.shuffle(pairs)
    return [
        turn
        for question, answer in pairs
        for turn in (Turn("human", question), Turn("gpt", answer))
    ]


def ask_more(annotation: Annotation, chance: random.Random) -> list[Turn]:
    """Return questions as the starter data asks them, of every kind a scene or a chart allows.

    The starter data asks one or two of them; text costs next to nothing, so more are asked here.
    """
    match annotation.kind:
        case "scenes":
            placed = [Placed(one.colour, one.label, one.box) for one in annotation.objects]
            groups = [colour_questions(placed), relation_questions(placed), counting(placed)]
            groups.append([presence(annotation, chance) for _ in range(NUM_PRESENT)])
        case "charts":
            groups = [list(chart_questions(*bars_of(annotation)))]
        case _:
            groups = []
    asked = [
        question for group in groups for question in chance.sample(group, min(NUM_MORE, len(group)))
    ]
    chance.shuffle(asked)
    return [turn for one in asked for turn in (Turn("human", one.text), Turn("gpt", one.answer))]


def presence(annotation: Annotation, chance: random.Random) -> Question:
    """Ask whether a thing is there: one that is, or one that shares a colour or shape, or any."""
    there = sorted({(one.colour, one.label) for one in annotation.objects})
    thing = chance.choice(there)
    if chance.random() < 0.5:
        near = [one for one in THINGS if (one[0] == thing[0]) != (one[1] == thing[1])]
        thing = chance.choice(near if chance.random() < 0.5 else list(THINGS))
    text = f"Is there {article(name_thing(thing))} in the image?"
    return Question("presence", text, "yes" if thing in there else "no")


def bars_of(annotation: Annotation) -> tuple[list[Bar], str]:
    """Return a chart's bars, each with the number printed nearest to it, and its title."""

    def middle(one: SceneObject) -> float:
        return (one.box[0] + one.box[2]) / 2

    numbers = [one for one in annotation.objects if one.kind == "number"]
    bars = [
        Bar(bar.colour, int(min(numbers, key=lambda one: abs(middle(one) - middle(bar))).label), "")
        for bar in annotation.objects
        if bar.kind == "bar"
    ]
    titles = [one.label for one in annotation.objects if one.kind == "word"]
    return bars, titles[0] if titles else ""
