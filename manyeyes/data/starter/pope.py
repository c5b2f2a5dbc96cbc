"""Yes/no questions on the presence of objects, after POPE.

Design decisions:

- Li et al. (2023), "Evaluating Object Hallucination in Large Vision-Language Models", section 5.1:
  questions about present objects are answered yes; as many are asked about absent ones, chosen
  at random, among the most frequent objects of the data ("popular"), or among those that most
  often occur together with the objects present ("adversarial").
- The paper takes the first k of each ranking. Here one of the first few is drawn: with one
  question an image, the first alone would make "no" guessable from the question.
- Frequencies are those of the training scenes, for all splits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.data.starter.drawing import Question, article, choose
from manyeyes.data.starter.scenes import THINGS, Thing, name_thing

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

SUBSETS = ("random", "popular", "adversarial")
_NUM_POPULAR = 12
_NUM_ADVERSARIAL = 4


@dataclass(frozen=True)
class Statistics:
    """In how many scenes each object, and each pair of objects, occurs."""

    frequency: Counter[Thing]
    together: Counter[tuple[Thing, Thing]]


def count_objects(scenes: Iterable[frozenset[Thing]]) -> Statistics:
    """Count objects and pairs over scenes."""
    frequency: Counter[Thing] = Counter()
    together: Counter[tuple[Thing, Thing]] = Counter()
    for scene in scenes:
        frequency.update(scene)
        together.update((one, other) for one in scene for other in scene if one != other)
    return Statistics(frequency, together)


def ask_presence(
    rng: np.random.Generator,
    subset: str,
    present: frozenset[Thing],
    statistics: Statistics,
    *,
    yes: bool,
) -> Question:
    """Ask about an object that is in the scene, or about one the subset's strategy chooses."""
    if yes:
        thing = choose(rng, sorted(present))
    else:
        thing = choose(rng, absent_candidates(subset, present, statistics))
    text = f"Is there {article(name_thing(thing))} in the image?"
    return Question(subset, text, "yes" if yes else "no")


def absent_candidates(
    subset: str, present: frozenset[Thing], statistics: Statistics
) -> list[Thing]:
    """List the absent objects a subset may ask about, the likeliest first."""
    absent = [thing for thing in THINGS if thing not in present]
    match subset:
        case "random":
            return absent
        case "popular":
            ranked = sorted(absent, key=lambda thing: -statistics.frequency[thing])
            return ranked[:_NUM_POPULAR]
        case "adversarial":
            ranked = sorted(
                absent,
                key=lambda thing: -sum(statistics.together[one, thing] for one in present),
            )
            return ranked[:_NUM_ADVERSARIAL]
        case _:
            raise AssertionError(subset)
