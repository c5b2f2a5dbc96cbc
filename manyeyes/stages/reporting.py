"""Gathers what the evaluation's report shows: scores, curves, times, lineage, data card."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes import provenance, steps
from manyeyes.data.dataset import Dataset
from manyeyes.evaluate.examples import make_examples
from manyeyes.evaluate.report import (
    Curve,
    LineageRow,
    ReportInputs,
    StageTime,
    read_curve,
    read_sources,
    write_report,
)
from manyeyes.recipe import EvalSection, ModelSection
from manyeyes.stages.history import Ancestor, curve_file, read_history

if TYPE_CHECKING:
    from manyeyes.evaluate.run import Evaluation


def report_evaluation(
    evaluation: Evaluation,
    dataset: Dataset,
    model: ModelSection,
    section: EvalSection,
    *,
    seconds: float,
    out: Path,
) -> Path:
    """Write ``report.html``; curves, times and lineage come from the history in ``out``.

    Args:
        evaluation: scores and predictions.
        dataset: for pictures and sources.
        model: whose mixture the title names.
        section: how many examples to show.
        seconds: what the evaluation took so far.
        out: the report's directory, with the inherited history.
    """
    ancestors = _in_pipeline_order(read_history(out))
    names = " + ".join(encoder.name for encoder in model.encoders)
    inputs = ReportInputs(
        title=names,
        subtitle=f"{model.fusion.kind}, {model.grid**2} visual tokens, {model.llm.weights}",
        scores=evaluation.scores,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        examples=make_examples(
            evaluation.predictions, evaluation.samples, dataset, section.examples
        ),
        curves=tuple(_curves(out, ancestors)),
        stages=(*_times(ancestors), StageTime("eval", "", round(seconds, 1), "running")),
        lineage=tuple(_lineage(ancestors)),
        libraries=provenance.libraries(),
        sources=read_sources(dataset.path / "sources.json"),
    )
    return write_report(inputs, out)


def _in_pipeline_order(ancestors: Sequence[Ancestor]) -> list[Ancestor]:
    order = [step.name for step in steps.STEPS]
    return sorted(ancestors, key=lambda ancestor: order.index(ancestor.stage))


def _curves(out: Path, ancestors: Sequence[Ancestor]) -> list[Curve]:
    files = [(ancestor, curve_file(out, ancestor)) for ancestor in ancestors]
    return [read_curve(path, ancestor.stage, ancestor.name) for ancestor, path in files if path]


def _times(ancestors: Sequence[Ancestor]) -> list[StageTime]:
    return [
        StageTime(
            ancestor.stage,
            "" if ancestor.name == ancestor.stage else ancestor.name,
            round(ancestor.seconds, 1),
            "ran",
        )
        for ancestor in ancestors
    ]


def _lineage(ancestors: Sequence[Ancestor]) -> list[LineageRow]:
    rows = [LineageRow("code", provenance.revision())]
    for ancestor in ancestors:
        rows.append(LineageRow(ancestor.label, ancestor.digest))
        rows.append(LineageRow(f"{ancestor.label} recipe slice", ancestor.recipe_slice))
    return rows
