"""``validate``: the data contract as a gate."""

from __future__ import annotations

from pathlib import Path

from manyeyes.config.recipe import ValidateSection
from manyeyes.data.contract.validate import validate as check_contract
from manyeyes.pipeline.stages import Details
from manyeyes.runtime.progress import Progress


def validate(section: ValidateSection, *, dataset: Path, out: Path, progress: Progress) -> Details:
    """Hold the dataset against the contract; bad rows go to ``quarantine.parquet``.

    Raises:
        GateRefused: more is bad, or less is good, than the recipe allows; the report is written.
    """
    result = check_contract(dataset, section, out, progress)
    return result.details()
