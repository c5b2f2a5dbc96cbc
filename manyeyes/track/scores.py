"""Scores of a model: per task the official metric, beside the same model shown a blank image."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict


class TaskScore(BaseModel):
    """One task's score in points (0 to 100)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    blind: float | None = None
    """The same with a blank image; None for a task without images or when it was not measured."""

    @property
    def gain(self) -> float | None:
        """Points that seeing the image is worth."""
        return None if self.blind is None else self.value - self.blind


class Scores(BaseModel):
    """The scores of one model over its tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: dict[str, TaskScore]

    @property
    def average(self) -> float:
        """Unweighted mean over tasks; 0 without tasks."""
        values = [score.value for score in self.tasks.values()]
        return sum(values) / len(values) if values else 0.0

    @property
    def digest(self) -> str:
        """sha256 of the scores, to name them as evidence."""
        tasks = sorted(self.tasks.items())
        text = ";".join(f"{name}={score.value!r},{score.blind!r}" for name, score in tasks)
        return hashlib.sha256(text.encode()).hexdigest()
