"""The quarantine: what is kept from use, one row per thing and reason, in one parquet file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.artifact.files import QUARANTINE_FILE
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class QuarantineRow:
    """Why one sample or record is not used."""

    id: str
    reason: str
    """Short name of the broken rule."""
    detail: str
    """What exactly is wrong."""


def write_quarantine(path: Path, rows: Sequence[QuarantineRow]) -> None:
    """Write the rows, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": [row.id for row in rows],
        "reason": [row.reason for row in rows],
        "detail": [row.detail for row in rows],
    }
    schema = pa.schema([(name, pa.string()) for name in columns])
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(pa.table(columns, schema=schema), unfinished, compression="zstd")
    unfinished.replace(path)


def quarantined_ids(report: Path) -> frozenset[str]:
    """Return the ids of the samples that a validation report keeps from use.

    Raises:
        UserError: the report holds no readable quarantine.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = report / QUARANTINE_FILE
    try:
        return frozenset(pq.read_table(path, columns=["id"]).column("id").to_pylist())
    except (OSError, pa.ArrowException):
        raise UserError(
            f"{path} is not a readable quarantine; run 'manyeyes validate' again."
        ) from None
