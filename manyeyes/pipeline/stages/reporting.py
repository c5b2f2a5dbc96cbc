"""Gathers what the evaluation's report shows: scores, curves, times, notes, lineage, data card.

Whether a stage ran or came from the store is no property of its result, so it is read from the
records of the present run. A pod that does not see the other pods' records tells times alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes import steps
from manyeyes.artifact import provenance
from manyeyes.artifact.files import SOURCES_FILE
from manyeyes.artifact.lineage import Ancestor, curve_file, read_history
from manyeyes.config.recipe.slices import EvalSlice
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.evaluation.examples import make_examples
from manyeyes.evaluation.report import (
    Curve,
    Note,
    ReportInputs,
    StageState,
    StageTime,
    read_curve,
    read_sources,
    write_report,
)
from manyeyes.runtime.home import run_directory, run_name, stage_record
from manyeyes.tracking.records import PIPELINE_FILE, read_record
from manyeyes.tracking.spool import UNNAMED, spool_directory

if TYPE_CHECKING:
    from manyeyes.evaluation.run import Evaluation


STATES: dict[str, StageState] = {"done": "ran", "cached": "cached", "current": "cached"}
"""How the runner says that a stage ended well, and how the report says it."""


@dataclass(frozen=True)
class LastStage:
    """The stage that writes the report, which has no record yet."""

    name: str
    seconds: float
    notes: tuple[str, ...]


def report_evaluation(
    evaluation: Evaluation,
    dataset: Dataset,
    piece: EvalSlice,
    *,
    last: LastStage,
    out: Path,
) -> Path:
    """Write ``report.html``; curves, times and lineage come from the history in ``out``.

    Args:
        evaluation: scores and predictions.
        dataset: for pictures and sources.
        piece: its model's mixture is named below the title; it says how many examples to show.
        last: the evaluation itself.
        out: the report's directory, with the inherited history.
    """
    model = piece.model
    experts = [encoder.name for encoder in model.encoders]
    ancestors = _in_pipeline_order(read_history(out), experts)
    names = " + ".join(experts)
    path = f"{model.fusion.kind}, {model.grid**2} visual tokens, {model.llm.weights}"
    recipe = recipe_name()
    inputs = ReportInputs(
        title=recipe or names,
        subtitle=f"{names}; {path}" if recipe else path,
        scores=evaluation.scores,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        examples=make_examples(
            evaluation.predictions, evaluation.samples, dataset, piece.section.examples
        ),
        curves=tuple(_curves(out, ancestors)),
        stages=(*map(_time, ancestors), StageTime(last.name, "", last.seconds, "ran")),
        notes=(
            *(Note(ancestor.task.label, text) for ancestor in ancestors for text in ancestor.notes),
            *(Note(last.name, text) for text in last.notes),
        ),
        revision=provenance.revision(),
        lineage=tuple(ancestors),
        libraries=provenance.libraries(),
        sources=read_sources(dataset.path / SOURCES_FILE),
    )
    return write_report(inputs, out)


def _in_pipeline_order(ancestors: Sequence[Ancestor], experts: Sequence[str]) -> list[Ancestor]:
    """Sort by stage, and the experts as the recipe lists them: the order of their channels."""
    order = [step.name for step in steps.STEPS]
    channel = {name: number for number, name in enumerate(experts)}
    return sorted(
        ancestors,
        key=lambda ancestor: (order.index(ancestor.stage), channel.get(ancestor.name, 0)),
    )


def _curves(out: Path, ancestors: Sequence[Ancestor]) -> list[Curve]:
    files = [(ancestor, curve_file(out, ancestor)) for ancestor in ancestors]
    return [read_curve(path, ancestor.stage, ancestor.name) for ancestor, path in files if path]


def recipe_name() -> str:
    """Return the name of the recipe that runs, empty where nothing says it."""
    record = read_record(spool_directory(run_name()) / PIPELINE_FILE)
    named = record.tags.get("recipe", "") if record else ""
    return named or ("" if run_name() == UNNAMED else run_name())


def _time(ancestor: Ancestor) -> StageTime:
    task = ancestor.task
    return StageTime(task.stage, task.expert or "", round(ancestor.seconds, 1), _state(ancestor))


def _state(ancestor: Ancestor) -> StageState:
    """Say how the present run came by a result; ``known`` where no record of it is at hand."""
    path = stage_record(run_directory(), ancestor.task.slug)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        of_this = record["digest"] == ancestor.digest
        return STATES.get(record["state"], "known") if of_this else "known"
    except (OSError, ValueError, KeyError, TypeError):
        return "known"
