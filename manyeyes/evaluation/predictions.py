"""What a model answered: one row per question, and the table that keeps them.

Design decisions:

- A row holds the answer with the picture and the one without, and both scores, so that every
  number of a report can be computed again from the table, and two models can be compared
  question by question.
- Rows are sorted by id, never by arrival: equal answers give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.artifact.files import PREDICTIONS_FILE
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Prediction:
    """One question with the answers given."""

    id: str
    task: str
    subset: str
    """Part of the task scored on its own; empty where there is none."""
    question: str
    answers: tuple[str, ...]
    """Accepted answers."""
    prediction: str
    blind_prediction: str | None
    """The answer to the same question with a blank picture; None if that was not asked."""
    score: float
    """0..1, by the task's metric for one answer."""
    blind_score: float | None
    pictures: int = 1
    """How many the question shows."""
    asked: str = ""
    """Digest of the words and the pictures before the answer."""


COLUMNS = tuple(Prediction.__dataclass_fields__)


def write_predictions(predictions: Iterable[Prediction], out: Path) -> Path:
    """Write ``predictions.parquet`` into ``out``, sorted by id, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(predictions, key=lambda row: row.id)
    types = {
        "answers": pa.list_(pa.string()),
        "score": pa.float64(),
        "blind_score": pa.float64(),
        "pictures": pa.int64(),
    }
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    path = out / PREDICTIONS_FILE
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.table(columns, schema=schema), temporary)
    temporary.replace(path)
    return path


def read_predictions(report: Path) -> tuple[Prediction, ...]:
    """Read the table of a report.

    Raises:
        UserError: it is missing or not such a table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = report / PREDICTIONS_FILE
    try:
        rows = pq.read_table(path, columns=list(COLUMNS)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is not a readable table of predictions; run eval again."
        ) from error
    return tuple(Prediction(**{**row, "answers": tuple(row["answers"])}) for row in rows)


def by_task(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Group rows by task; tasks and rows in alphabetical order."""
    tasks: dict[str, list[Prediction]] = {}
    for row in sorted(predictions, key=lambda row: (row.task, row.id)):
        tasks.setdefault(row.task, []).append(row)
    return tasks
