"""Several trained recipes side by side: what each scored and what it cost, as Eagle's tables do.

Everything is read from the artifacts in the content store, so the table can be made again at any
time, of whatever pipeline trained the models: scores from ``eval``'s report, visual tokens and
parameters from ``sft``'s checkpoint, speed from the curve it keeps. Speed is the median over the
steps of ``sft``, forward, backward and update, which a busy machine or a first step hardly moves.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from manyeyes.artifact.files import CURVES_FILE
from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.config.recipe import Recipe
from manyeyes.errors import ManyeyesError
from manyeyes.evaluation.score import Scores, read_scores
from manyeyes.pipeline.explain import Explanation, explain
from manyeyes.runtime.locks import temporary
from manyeyes.store import Store, open_store

TABLE_FILES = ("table.json", "table.md")


@dataclass(frozen=True)
class Line:
    """One trained recipe."""

    name: str
    recipe: str
    scores: dict[str, float]
    """Per task, in points of 100."""
    average: float
    gain_over_blind: float | None
    """Points beyond the same model with a blank image; None if that was not run."""
    visual_tokens: int
    """Of one image."""
    fusion_parameters: int
    projector_parameters: int
    samples_per_second: float
    """Median over the steps of ``sft``."""
    tokens_per_second: float
    """The same, in positions (visual tokens included)."""
    checkpoint: str
    """Content digest of ``sft``'s result."""
    report: str
    """Content digest of ``eval``'s result."""

    @property
    def joining_parameters(self) -> int:
        """What stands between the encoders and the language model."""
        return self.fusion_parameters + self.projector_parameters


@dataclass(frozen=True)
class TableFiles:
    """Where a table was written."""

    json: Path
    markdown: Path


def compare(recipes: Mapping[str, Recipe]) -> list[Line]:
    """Read the results of recipes that have been trained and scored.

    Args:
        recipes: name of the line to its recipe.

    Raises:
        ManyeyesError: a result is not in the content store.
    """
    store = open_store()
    return [_line(store, name, recipe) for name, recipe in recipes.items()]


def _line(store: Store, name: str, recipe: Recipe) -> Line:
    answers = {answer.task.stage: answer for answer in explain(recipe)}
    with temporary() as folder:
        checkpoint = _fetched(store, answers["sft"], recipe, folder)
        report = _fetched(store, answers["eval"], recipe, folder)
        scores = read_scores(report)
        rows = _read_curve(checkpoint / CURVES_FILE)
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        return Line(
            name=name,
            recipe=recipe.name,
            scores={task: score.total.score.value for task, score in scores.tasks.items()},
            average=scores.average.score.value,
            gain_over_blind=_gain(scores),
            visual_tokens=int(config["num_visual_tokens"]),
            fusion_parameters=_num_parameters(checkpoint / "fusion.safetensors"),
            projector_parameters=_num_parameters(checkpoint / "projector.safetensors"),
            samples_per_second=_median(row["samples_per_second"] for row in rows),
            tokens_per_second=_median(row["tokens_per_second"] for row in rows),
            checkpoint=str(answers["sft"].digest),
            report=str(answers["eval"].digest),
        )


def _fetched(store: Store, answer: Explanation, recipe: Recipe, scratch: Path) -> Path:
    out = scratch / answer.task.stage
    if answer.fingerprint is None or store.fetch(answer.fingerprint, out) is None:
        raise ManyeyesError(
            f"The content store has no result of {answer.task.stage} for {recipe.name}: "
            "run the same command again to make it."
        )
    return out


def _gain(scores: Scores) -> float | None:
    return scores.average.gain.value if scores.average.gain else None


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 2)


def _read_curve(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _num_parameters(path: Path) -> int:
    """Count the numbers in a file of weights; a part without weights has no file."""
    from safetensors import safe_open

    if not path.exists():
        return 0
    total = 0
    with safe_open(path, framework="np") as weights:
        for key in weights.keys():  # noqa: SIM118  (no mapping: it cannot be iterated)
            count = 1
            for side in weights.get_slice(key).get_shape():
                count *= side
            total += count
    return total


def write_table(title: str, lines: Sequence[Line], out: Path) -> TableFiles:
    """Write ``table.json`` and ``table.md`` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    files = TableFiles(*(out / name for name in TABLE_FILES))
    data = {"title": title, "lines": [asdict(line) for line in lines]}
    atomic_write_text(files.json, json.dumps(data, indent=2) + "\n")
    atomic_write_text(files.markdown, markdown(title, lines))
    return files


def markdown(title: str, lines: Sequence[Line]) -> str:
    """Return the table for people: the best score of each column is bold."""
    tasks = list(lines[0].scores)
    columns = [*tasks, "average"]
    best = {column: max(_score(line, column) for line in lines) for column in columns}
    header = [
        "fusion",
        *columns,
        "over blind",
        "visual tokens",
        "parameters",
        "samples/s",
        "tokens/s",
    ]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for line in lines:
        points = [
            f"**{_score(line, column):.1f}**"
            if _score(line, column) == best[column]
            else f"{_score(line, column):.1f}"
            for column in columns
        ]
        gain = "" if line.gain_over_blind is None else f"{line.gain_over_blind:+.1f}"
        costs = [
            f"{line.visual_tokens}",
            f"{line.joining_parameters:,}",
            f"{line.samples_per_second:.1f}",
            f"{line.tokens_per_second:,.0f}",
        ]
        rows.append([line.name, *points, gain, *costs])
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"# Fusions compared: {title}\n\n{body}\n\n"
        "Scores are points of 100 on each task's own metric. Parameters: fusion and projector. "
        "Speed: median step of sft on this machine.\n"
    )


def _score(line: Line, column: str) -> float:
    return line.average if column == "average" else line.scores[column]
