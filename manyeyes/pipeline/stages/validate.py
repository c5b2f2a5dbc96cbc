"""``validate``: the data contract as a gate."""

from __future__ import annotations

from manyeyes.config.recipe.slices import ValidateSlice
from manyeyes.data.contract.validate import validate as check_contract
from manyeyes.pipeline.stages import Details, StageContext


def validate(piece: ValidateSlice, context: StageContext) -> Details:
    """Hold the dataset against the contract; bad rows go to ``quarantine.parquet``.

    Raises:
        GateRefused: more is bad, or less is good, than the recipe allows; the report is written.
    """
    dataset, out = context.inputs["dataset"], context.out
    return check_contract(dataset, piece.section, out, context.progress).details()
