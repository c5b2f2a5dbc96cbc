"""The words of a preflight: what is looked at, what was found, and what a check is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from manyeyes.data.contract.needs import Key, trainings
from manyeyes.steps import TRAININGS

if TYPE_CHECKING:
    from pathlib import Path

    from manyeyes.config.recipe import EncoderSection, ModelSection, Recipe


@dataclass(frozen=True)
class Found:
    """One thing that a check found."""

    key: Key
    """Place in the recipe."""
    text: str
    absent: bool = False
    """It is only not here: an error where a stage that reads it is to run, a note elsewhere."""
    note: bool = False
    """Worth knowing and no mistake: a note everywhere."""

    @property
    def readers(self) -> tuple[str, ...]:
        """Return the stages that read what this is about, where it is absent."""
        if self.key[0] == "data":
            return ("prepare",)
        if "projector" in self.key:
            return ("pretrain",)
        return ("prealign", "pretrain") if "encoders" in self.key else TRAININGS


@dataclass(frozen=True)
class Subject:
    """A recipe that is looked at."""

    recipe: Recipe
    dataset: Path | None = None
    """Look at this dataset in place of the recipe's."""

    @cached_property
    def models(self) -> dict[Key, ModelSection]:
        """Return every model that the recipe writes, by its place."""
        own = {
            (*place, "model"): section.model
            for place, section in trainings(self.recipe).items()
            if section.model is not None
        }
        return {("model",): self.recipe.model, **own}

    @cached_property
    def encoders(self) -> dict[Key, EncoderSection]:
        """Return every encoder that the recipe writes, teachers included, by its place."""
        found: dict[Key, EncoderSection] = {}
        for place, model in self.models.items():
            for number, encoder in enumerate(model.encoders):
                found[(*place, "encoders", number)] = encoder
            if model.alignment is not None:
                found[(*place, "alignment", "teacher")] = model.alignment.teacher
        return found


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    reads: str
    """What it reads, in words."""
    look: Callable[[Subject], Iterable[Found]]
    heavy: bool = False
    """It imports torch."""


@dataclass
class Report:
    """What all checks found."""

    answers: dict[str, list[Found]] = field(default_factory=dict)
    """Check that looked to what it found."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Names of those that did not, and why."""

    @property
    def found(self) -> list[Found]:
        """Return everything, each thing once."""
        return list(dict.fromkeys(one for found in self.answers.values() for one in found))

    def wrong(self, running: Collection[str] = ()) -> list[Found]:
        """Return the errors.

        Args:
            running: stages that are to run on this machine.
        """
        return [one for one in self.found if not _is_note(one, running)]

    def notes(self, running: Collection[str] = ()) -> list[Found]:
        """Return what is worth a line and no error; see :meth:`wrong`."""
        return [one for one in self.found if _is_note(one, running)]


def _is_note(found: Found, running: Collection[str]) -> bool:
    return found.note or (found.absent and not set(found.readers) & set(running))
