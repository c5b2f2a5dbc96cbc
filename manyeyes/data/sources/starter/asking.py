"""Turn stored pictures into samples: who is asked what, how often, with balanced answers.

Design decisions:

- Within a subset the question is chosen whose answer was given least often so far. Blind guessing
  then gains little, in training as in the test.
- Nothing is asked twice about one picture.
- Held-out samples have one turn; a third of the training samples of visual tasks have two or three.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER, Sample, Turn
from manyeyes.data.sources.starter.chat import compose_chat
from manyeyes.data.sources.starter.drawing import Question, choose, pick
from manyeyes.data.sources.starter.learned import conversation_entity, was_learned
from manyeyes.data.sources.starter.pope import SUBSETS, PresenceAsker, Statistics
from manyeyes.data.sources.starter.sources import SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from manyeyes.data.sources.starter.gallery import Shown

SUBSET_SHARES: Mapping[str, Mapping[str, float]] = {
    "numbers": {"single": 0.58, "top_bottom": 0.25, "length": 0.17},
    "charts": {"value": 0.55, "extreme": 0.25, "count": 0.09, "title": 0.07, "difference": 0.04},
    "documents": {"lines": 0.34, "receipt": 0.33, "form": 0.33},
    "scenes": {"colour": 0.35, "relation": 0.35, "counting": 0.30},
}
"""Share of each subset in a task's questions, as far as the pictures allow it."""

NUM_REFERENCES = {"scenes": 10}
"""VQA accuracy compares with ten answers; all other tasks have one."""

CAPTION_REQUESTS = (
    "Describe the image.",
    "What is in the image?",
    "What does the image show?",
    "Give a short description of the image.",
)

_SEVERAL_TURNS = 0.35
_PATIENCE = 20
"""Pictures tried in a row before giving up: they have nothing left to ask."""


@dataclass
class Interviewer:
    """Makes the samples of one split, counting answers as it goes."""

    split: str
    rng: np.random.Generator
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(task, subset) to the number of questions."""
    given: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(task, subset, answer) to the times it was given."""
    replies: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Question to its answers and how often each was given."""

    def ask_about(self, task: str, shown: list[Shown], count: int) -> list[Sample]:
        """Ask ``count`` times about pictures in turn, one to three questions each time."""
        samples: list[Sample] = []
        for one in _in_turn(self.rng, shown):
            if len(samples) == count:
                break
            num_turns = 1
            if self.split == "train" and self.rng.random() < _SEVERAL_TURNS:
                num_turns = int(self.rng.integers(2, 4))
            questions: list[Question] = []
            for _ in range(num_turns):
                questions += self._next_question(task, one, questions)
            if questions:
                samples.append(self._sample(task, len(samples), (one,), questions))
        return samples

    def compare_numbers(self, shown: list[Shown], first: int, count: int) -> list[Sample]:
        """Ask ``count`` times about two pictures with one number each; ids start at ``first``."""
        single = [one for one in shown if any(q.subset == "single" for q in one.questions)]
        samples: list[Sample] = []
        pairs: set[tuple[str, str]] = set()
        for _ in range(_PATIENCE * count if len(single) > 1 else 0):
            if len(samples) == count:
                break
            one, other = pick(self.rng, single, 2)
            values = [_value(one), _value(other)]
            if values[0] == values[1] or (one.ref.id, other.ref.id) in pairs:
                continue
            pairs.add((one.ref.id, other.ref.id))
            question = _compare(self.rng, values, balanced=len(samples) % 2 == 0)
            if question is not None:
                place = first + len(samples)
                samples.append(self._sample("numbers", place, (one, other), [question]))
        return samples

    def ask_presence(self, shown: list[Shown], statistics: Statistics, count: int) -> list[Sample]:
        """Ask POPE's questions: ``count`` is a multiple of six, so every subset is half yes."""
        assert count % (2 * len(SUBSETS)) == 0
        samples: list[Sample] = []
        pictures = _in_turn(self.rng, shown)
        asker = PresenceAsker(self.rng, statistics)
        for subset in SUBSETS:
            for place in range(count // len(SUBSETS)):
                question = None
                while question is None:
                    one = next(pictures)
                    present = frozenset(one.objects)
                    question = asker.ask(subset, present, one.asked, yes=place % 2 == 0)
                samples.append(self._sample("pope", len(samples), (one,), [question]))
        return samples

    def caption(self, shown: list[Shown], count: int) -> list[Sample]:
        """Ask for a description of ``count`` different pictures."""
        samples = []
        for place, one in enumerate(pick(self.rng, shown, count)):
            question = Question(one.kind, choose(self.rng, CAPTION_REQUESTS), one.caption)
            samples.append(self._sample("captions", place, (one,), [question], scored=False))
        return samples

    def chat(self, count: int, taken: set[tuple[Turn, ...]]) -> list[Sample]:
        """Write ``count`` conversations that are not among those ``taken``, and take them."""
        samples: list[Sample] = []
        while len(samples) < count:
            turns = compose_chat(self.rng)
            seen = self.split != "train" and was_learned(conversation_entity(turns))
            if seen or turns in taken:
                continue
            taken.add(turns)
            samples.append(
                Sample(
                    id=f"chat-{self.split}-{len(samples):05d}",
                    split=self.split,
                    task="chat",
                    subset="chat",
                    turns=turns,
                    images=(),
                    answers=(),
                    source="chat",
                    licence=SOURCES["chat"].licence,
                    entities=(),
                )
            )
        return samples

    def _next_question(self, task: str, one: Shown, said: list[Question]) -> list[Question]:
        """Choose the subset most behind its share, then the question with the rarest answer.

        Returns none or one question: none if nothing is left but what was asked about this
        picture before, or was just answered (``said``) in other words.
        """
        known = {(question.subset, question.answer) for question in said}
        left = [
            question
            for question in one.questions
            if question.text not in one.asked
            and (question.subset, question.answer) not in known
            and not self._worn(question)
        ]
        if not left:
            return []
        total = sum(self.asked[task, subset] for subset in SUBSET_SHARES[task])
        subset = max(
            sorted({question.subset for question in left}),
            key=lambda each: SUBSET_SHARES[task][each] * (total + 1) - self.asked[task, each],
        )
        candidates = [question for question in left if question.subset == subset]
        question = min(
            pick(self.rng, candidates, len(candidates)),
            key=lambda each: self.given[task, subset, each.answer],
        )
        self.asked[task, subset] += 1
        self.given[task, subset, question.answer] += 1
        self.replies[question.text][question.answer] += 1
        one.asked.add(question.text)
        return [question]

    def _worn(self, question: Question) -> bool:
        """Tell whether a held-out question has had this answer clearly more often than others.

        Training is spared this rule: it would throw away most scenes with one of each shape.
        """
        replies = self.replies[question.text]
        if self.split == "train" or not replies:
            return False
        return replies[question.answer] > 1 + min(replies.values())

    def _sample(
        self,
        task: str,
        place: int,
        shown: tuple[Shown, ...],
        questions: list[Question],
        *,
        scored: bool = True,
    ) -> Sample:
        """Put pictures, questions and answers together; pictures stand before the first turn."""
        turns: list[Turn] = []
        for question in questions:
            start = "" if turns else f"{IMAGE_PLACEHOLDER}\n" * len(shown)
            turns += [Turn("human", start + question.text), Turn("gpt", question.answer)]
        last = questions[-1]
        return Sample(
            id=f"{task}-{self.split}-{place:05d}",
            split=self.split,
            task=task,
            subset=last.subset,
            turns=tuple(turns),
            images=tuple(one.ref for one in shown),
            answers=(last.answer,) * NUM_REFERENCES.get(task, 1) if scored else (),
            source=shown[0].source,
            licence=SOURCES[shown[0].source].licence,
            entities=tuple(dict.fromkeys(entity for one in shown for entity in one.entities)),
        )


def _in_turn(rng: np.random.Generator, shown: list[Shown]) -> Iterator[Shown]:
    """Go through the pictures in random order, again and again, each time in another order."""
    for _ in range(_PATIENCE):
        yield from pick(rng, shown, len(shown))


def _value(one: Shown) -> str:
    return next(question.answer for question in one.questions if question.subset == "single")


def _compare(rng: np.random.Generator, values: list[str], *, balanced: bool) -> Question | None:
    """Ask which picture has the larger number, or for the number in one of them."""
    if rng.random() < 0.6:
        place = int(rng.integers(2))
        where = ("first", "second")[place]
        return Question("two_images", f"What number is in the {where} image?", values[place])
    larger = "first" if int(values[0]) > int(values[1]) else "second"
    if (larger == "first") != balanced:
        return None
    text = "Which number is larger, in the first or the second image?"
    return Question("two_images", text, larger)
