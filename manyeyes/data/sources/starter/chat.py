"""Text-only conversations: small talk and instructions about the vocabulary, one to three turns.

They keep the language model a language model while it learns to look: instructions without a
picture must not be answered with what a picture might show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manyeyes.data.dataset.sample import Turn
from manyeyes.data.sources.starter.drawing import article, choose, enumerate_words, pick
from manyeyes.data.sources.starter.vocabulary import (
    CITIES,
    COLOURS,
    COUNT_WORDS,
    ITEMS,
    NAMES,
    SHAPES,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

Exchange = tuple[str, str]

_GROUPS: dict[str, tuple[str, ...]] = {
    "name": NAMES,
    "city": CITIES,
    "item": ITEMS,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
}
_PLURALS = {
    "name": "names", "city": "cities", "item": "items", "colour": "colours", "shape": "shapes",
}  # fmt: skip


def compose_chat(rng: np.random.Generator) -> tuple[Turn, ...]:
    """Write a conversation of one to three exchanges, some opened by a greeting."""
    exchanges = [choose(rng, _EXCHANGES)(rng) for _ in range(int(rng.integers(1, 4)))]
    if rng.random() < 0.3:
        exchanges.insert(0, _greet(rng))
    unique = dict(exchanges)
    return tuple(
        turn
        for asked, answered in unique.items()
        for turn in (Turn("human", asked), Turn("gpt", answered))
    )


def _greet(rng: np.random.Generator) -> Exchange:
    name = choose(rng, NAMES)
    greeting = choose(rng, ("Hello", "Good morning", "Good evening"))
    return f"{greeting}, my name is {name}.", f"{greeting}, {name}."


def _repeat(rng: np.random.Generator) -> Exchange:
    word = choose(rng, _GROUPS[choose(rng, tuple(_GROUPS))])
    return f"Say the word {word}.", word


def _classify(rng: np.random.Generator) -> Exchange:
    group = choose(rng, tuple(_GROUPS))
    return f"What is {choose(rng, _GROUPS[group])}: {_choices(rng, group)}?", group


def _choices(rng: np.random.Generator, group: str) -> str:
    """Offer the right group and another one, in random order."""
    other = choose(rng, [name for name in _GROUPS if name != group])
    first, second = pick(rng, (group, other), 2)
    return f"{article(first)} or {article(second)}"


def _list_some(rng: np.random.Generator) -> Exchange:
    group = choose(rng, tuple(_GROUPS))
    count = int(rng.integers(2, 4))
    words = sorted(_GROUPS[group])[:count]
    return f"Name {COUNT_WORDS[count]} {_PLURALS[group]}.", enumerate_words(words)


def _last_word(rng: np.random.Generator) -> Exchange:
    words = pick(rng, _GROUPS[choose(rng, tuple(_GROUPS))], int(rng.integers(2, 5)))
    where, word = choose(rng, (("first", words[0]), ("last", words[-1])))
    return f"Here are words: {', '.join(words)}. Which one is {where}?", word


def _is_a(rng: np.random.Generator) -> Exchange:
    group = choose(rng, tuple(_GROUPS))
    other = choose(rng, [name for name in _GROUPS if name != group])
    asked = choose(rng, (group, other))
    return f"Is {choose(rng, _GROUPS[group])} {article(asked)}?", "yes" if asked == group else "no"


_EXCHANGES: tuple[Callable[[np.random.Generator], Exchange], ...] = (
    _repeat, _classify, _list_some, _last_word, _is_a,
)  # fmt: skip
