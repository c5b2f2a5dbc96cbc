"""Which key of a source fills which tensor of a model of ours, by the table of names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.errors import UserError
from manyeyes.model.weights.exchange.experts import Piece, place_of
from manyeyes.model.weights.exchange.names import LANGUAGE, Row, System, translate
from manyeyes.model.weights.exchange.report import ImportReport, Unused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from manyeyes.config.recipe import ModelSection
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.model.weights.exchange.report import Shape
    from manyeyes.model.weights.exchange.source import Source

NOT_JOINT = "not of the projector or the fusion"
FRESH = "new, as the authors' second stage begins"
NO_PLACE = "the features do not pass through it"
ALIASES = ("base_model.model.", "model.")
"""What stands in front of a name or not, depending on how it was saved."""


@dataclass(frozen=True)
class Matcher:
    """Knows a model and the authors' names for its parts."""

    model: VisionLanguageModel
    section: ModelSection
    system: System
    whole: bool
    """Towers and language model, too, or projector and fusion only."""

    def wanted(self) -> dict[str, Shape]:
        """Return names and shapes of the tensors to fill."""
        shapes = {key: tuple(value.shape) for key, value in self.model.state_dict().items()}
        if self.whole:
            return shapes
        parts = tuple(self.joint_parts())
        return {key: shape for key, shape in shapes.items() if key.startswith(parts)}

    def joint_parts(self) -> list[str]:
        """Return the prefixes of what belongs together with the projector."""
        towers = [self.encoder_of(row.tower) for row in self.system.joint if row.tower]
        return ["projector.", "fusion.", *(f"encoders.{name}." for name in towers)]

    def goal(self, key: str) -> tuple[str, ...] | Piece | Unused | None:
        """Return what a published key fills, or why nothing; None if nobody knows it."""
        for candidate in (key, key.removeprefix(ALIASES[0]), f"{ALIASES[1]}{key}"):
            for row in (*self.system.joint, *self.system.towers, *LANGUAGE):
                found = translate(candidate, row.theirs, row.ours, row.tower)
                if found is not None:
                    return self._apply(row, *found)
        return None

    def _apply(self, row: Row, ours: str, tower: str) -> tuple[str, ...] | Piece | Unused | None:
        if row.reason:
            return Unused(row.reason)
        if not self.whole and row not in self.system.joint:
            return Unused(NOT_JOINT)
        if not row.tower:
            place = place_of(ours)
            return (place,) if isinstance(place, str) else place
        name = self.encoder_of(tower)
        target = self.model.experts[name].rename(ours)
        if target is None:
            return Unused(NO_PLACE)
        targets = (target,) if isinstance(target, str) else target
        return tuple(f"encoders.{name}.tower.{part}" for part in targets)

    def encoder_of(self, tower: str) -> str:
        """Return the name of the encoder at a place of the recipe or in a role of its fusion.

        Raises:
            UserError: the recipe has none there.
        """
        names = [encoder.name for encoder in self.section.encoders]
        if not tower.isdigit():
            return str(getattr(self.section.fusion, tower))
        if int(tower) >= len(names):
            raise UserError(
                f"The weights have a tower number {tower} (counted from 0), but model.encoders has "
                f"{', '.join(names)}: use the recipe of the model that was published."
            )
        return names[int(tower)]


def match(matcher: Matcher, source: Source, target: str) -> ImportReport:
    """Hold a source against a model; what is missing of whole towers may come from elsewhere.

    A tower that the source has nothing of is taken from the weights that the recipe names.
    """
    report, wanted = ImportReport(source.reference, target), matcher.wanted()
    for key, shape in source.shapes.items():
        report.take(key, shape, matcher.goal(key), wanted)
    filled = report.filled()
    for encoder in matcher.section.encoders if matcher.whole else ():
        prefix = f"encoders.{encoder.name}."
        if encoder.weights != "random" and not any(name.startswith(prefix) for name in filled):
            report.elsewhere[f"encoders.{encoder.name}"] = encoder.weights
    for part in () if matcher.whole else matcher.system.fresh:
        if not any(name.startswith(f"{part}.") for name in filled):
            report.elsewhere[part] = FRESH
    away = tuple(f"{part}." for part in report.elsewhere)
    tied = _tied(matcher.model) if matcher.whole else {}
    report.missing = [
        name
        for name in wanted
        if name not in filled
        and not (away and name.startswith(away))
        and tied.get(name) not in filled
    ]
    return report


def _tied(model: VisionLanguageModel) -> Mapping[str, str]:
    """Return the head under the name of the embedding table, where they are one tensor."""
    if not getattr(model.llm.config, "tie_word_embeddings", False):
        return {}
    return {"llm.lm_head.weight": "llm.model.embed_tokens.weight"}
