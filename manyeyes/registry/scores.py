"""Scores as the registry keeps and compares them: a report's, without intervals and subsets.

The record of a measurement is a tag of a model version, and a tag is short. It is read back years
later, so every field has a default for versions of older releases.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from manyeyes.evaluation.statistics import Outcomes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manyeyes.artifact.manifest import Manifest
    from manyeyes.evaluation.score import Scores, TaskScore


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeptTaskScore(_Kept):
    """One task's score in points (0 to 100). The defaults stand for versions of older releases."""

    value: float
    blind: float | None = None
    """The same with a blank image; None if it was not measured."""
    visual: bool = True
    """Whether its questions show pictures."""
    floor: float | None = None
    """The better of the blank image and the best constant answer; None if not measured."""
    constant: str = ""
    """The best constant answer."""
    highest: float = 100.0
    """The highest score that the accepted answers allow."""
    count: int = 0
    """Questions."""
    num_empty: int = 0
    """Answers without a character."""
    num_equal: int = 0
    """Answers that are the commonest one."""
    commonest: str = ""
    num_equal_labels: int = 0
    """Questions whose label is the commonest one."""
    metric: str = ""
    version: int = 0
    """Of the metric's arithmetic."""
    protocol: str = ""
    questions: str = ""
    """Digest of the questions, their pictures and accepted answers; empty if it was not kept."""

    @classmethod
    def of(cls, task: TaskScore) -> KeptTaskScore:
        """Keep of a report's task what later models are compared by."""
        blind, floor, answered = task.total.blind, task.floor, task.answered
        return cls(
            value=task.total.score.value,
            blind=blind.value if blind else None,
            visual=task.visual,
            floor=floor.value,
            constant=floor.constant,
            highest=floor.highest,
            count=task.total.count,
            num_empty=answered.num_empty,
            num_equal=answered.num_equal,
            commonest=answered.commonest,
            num_equal_labels=answered.num_equal_labels,
            metric=task.metric,
            version=task.version,
            protocol=task.protocol,
            questions=task.questions,
        )

    @property
    def headroom(self) -> float | None:
        """Share of the way from the floor to the highest score; None where there is no way."""
        if self.floor is None or self.highest - self.floor <= 1e-4:
            return None
        return (self.value - self.floor) / (self.highest - self.floor)


class KeptScores(_Kept):
    """The scores of one model over its tasks: one measurement."""

    tasks: dict[str, KeptTaskScore]
    split: str = ""
    limit: int = 0
    """Questions per task; 0 took all."""
    max_new_tokens: int = 0
    code: str = ""
    """Digest of the code that asked and judged."""
    dataset: str = ""
    """Content digest of the dataset the questions are of."""
    report: str = ""
    """Content digest of the report that holds the answers."""

    @classmethod
    def of(cls, scores: Scores, report: Manifest) -> KeptScores:
        """Keep the scores of a report."""
        return cls(
            tasks={name: KeptTaskScore.of(task) for name, task in scores.tasks.items()},
            split=scores.conditions.split,
            limit=scores.conditions.limit,
            max_new_tokens=scores.conditions.max_new_tokens,
            code=report.code,
            dataset=report.parents.get("dataset", ""),
            report=report.digest,
        )

    def flat(self) -> dict[str, float]:
        """Return the scores under one name each: ``average``, ``charts``, ``charts_blind``."""
        values = {"average": self.average}
        for name, score in sorted(self.tasks.items()):
            values[name] = score.value
            if score.blind is not None:
                values[f"{name}_blind"] = score.blind
        return values

    @property
    def average(self) -> float:
        """Unweighted mean over tasks; 0 without tasks."""
        values = [score.value for score in self.tasks.values()]
        return sum(values) / len(values) if values else 0.0

    @property
    def digest(self) -> str:
        """sha256 of the measurement, to name it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def differences(self, other: KeptScores) -> tuple[str, ...]:
        """Say for each task of ``other`` how its questions differ from these; empty if they don't.

        Args:
            other: the champion's measurement.
        """
        return tuple(self._differences(other))

    def _differences(self, other: KeptScores) -> Iterator[str]:
        for name, theirs in sorted(other.tasks.items()):
            mine = self.tasks.get(name)
            if mine is None:
                yield f"{name} was asked of the champion alone"
            elif not theirs.questions or not mine.questions:
                yield f"{name}: it is not recorded which questions the champion was asked"
            elif mine.questions != theirs.questions:
                yield f"{name}: other questions ({mine.count} here, {theirs.count} there)"
            elif (mine.metric, mine.version) != (theirs.metric, theirs.version):
                yield (
                    f"{name}: {mine.metric} version {mine.version} here, {theirs.metric} version "
                    f"{theirs.version} there"
                )
        if other.tasks and self.max_new_tokens != other.max_new_tokens:
            yield (
                f"answers of at most {self.max_new_tokens} tokens here, {other.max_new_tokens} "
                "there"
            )


class TaskOutcomes(_Kept):
    """How each question of a task went, in the order of the questions' ids."""

    aggregate: str
    scores: tuple[float, ...]
    positive: tuple[bool, ...] = ()
    """Whether the right answer is "yes"; kept for F1 alone."""
    parts: tuple[str, ...] = ()
    """The part of the task that each question is of; empty where there is one part."""


class Measurement(_Kept):
    """Scores with how every question went: what two models are compared by."""

    scores: KeptScores
    outcomes: dict[str, TaskOutcomes]

    @classmethod
    def of(cls, scores: KeptScores, outcomes: dict[str, Outcomes]) -> Measurement:
        """Pack outcomes without what every question has alike."""
        return cls(
            scores=scores,
            outcomes={
                task: TaskOutcomes(
                    aggregate=one.aggregate,
                    scores=one.scores,
                    positive=one.positive if one.aggregate == "f1" else (),
                    parts=one.parts if set(one.parts) != {""} else (),
                )
                for task, one in outcomes.items()
            },
        )

    def unpacked(self) -> dict[str, Outcomes]:
        """Return the outcomes as the statistics take them."""
        return {
            task: Outcomes(
                "f1" if one.aggregate == "f1" else "mean",
                one.scores,
                one.positive or (True,) * len(one.scores),
                one.parts or ("",) * len(one.scores),
            )
            for task, one in self.outcomes.items()
        }
