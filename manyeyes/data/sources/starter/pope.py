"""Yes/no questions on the presence of objects, after POPE.

Design decisions:

- Li et al. (2023), "Evaluating Object Hallucination in Large Vision-Language Models", section 5.1:
  questions about present objects are answered yes; as many are asked about absent ones, chosen
  at random, among the most frequent objects of the data ("popular"), or among those that most
  often occur together with the objects present ("adversarial").
- The paper takes the first k of each ranking. Here the first few are candidates, and both present
  and absent objects are chosen so that every object is about as often asked for in vain as not.
  POPE is never trained on; our model is, and would otherwise learn that popular objects mean "no"
  (measured: 77 % right without looking).
- Frequencies are those of the training scenes, for all splits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.data.sources.starter.drawing import Question, article, pick
from manyeyes.data.sources.starter.scenes import THINGS, Thing, name_thing

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


class PresenceAsker:
    """Asks whether things are there, and remembers which it asked for in vain."""

    def __init__(self, rng: np.random.Generator, statistics: Statistics) -> None:
        """Ask by the training scenes' ``statistics``."""
        self._rng = rng
        self._statistics = statistics
        self._surplus: Counter[Thing] = Counter()
        """How many more questions about an object were answered yes than no."""

    def ask(
        self, subset: str, present: frozenset[Thing], asked: set[str], *, yes: bool
    ) -> Question | None:
        """Ask about an object in the scene, or about one that the subset's strategy offers.

        Returns None if all that could be asked is in ``asked`` (and adds the question otherwise).
        """
        things = sorted(present) if yes else absent_candidates(subset, present, self._statistics)
        unasked = [thing for thing in things if _text(thing) not in asked]
        if not unasked:
            return None
        sign = 1 if yes else -1
        thing = min(
            pick(self._rng, unasked, len(unasked)), key=lambda one: sign * self._surplus[one]
        )
        self._surplus[thing] += sign
        asked.add(_text(thing))
        return Question(subset, _text(thing), "yes" if yes else "no")


def _text(thing: Thing) -> str:
    return f"Is there {article(name_thing(thing))} in the image?"


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
