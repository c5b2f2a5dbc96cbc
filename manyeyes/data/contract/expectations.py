"""The contract as a Great Expectations suite: it gives the verdict on the profile's columns.

Great Expectations takes seconds to import, so this module is imported late. Result format SUMMARY:
the rows that break a rule are found by our own masks, a hundred times faster than COMPLETE would
list them. Nothing is kept of a result but numbers, so that equal data gives an equal record.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, assert_never

from manyeyes.data.contract.rules import Between, IsTrue, OneOf, Rule
from manyeyes.errors import ManyeyesError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    import pandas as pd
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.expectations.expectation import Expectation

    from manyeyes.config.recipe import ValidateSection


@dataclass(frozen=True)
class Outcome:
    """One expectation's result."""

    expectation: str
    """Great Expectations' name of it."""
    column: str
    text: str
    success: bool
    num_values: int | None
    num_unexpected: int | None
    observed: float | None


def load() -> ModuleType:
    """Import Great Expectations with its telemetry off (nothing else may import it first)."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations

    return great_expectations


def judge(frame: pd.DataFrame, table: Sequence[Rule], section: ValidateSection) -> list[Outcome]:
    """Hold the profile against the contract.

    Args:
        frame: the profile's columns, with ``quarantined`` (0.0 or 1.0) and ``kept`` (0 or 1).
        table: the rules.
        section: the thresholds over all samples.

    Raises:
        ManyeyesError: an expectation could not be computed.
    """
    gx = load()
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    expectations = _expectations(table, section)
    suite = context.suites.add(ExpectationSuite(name="contract", expectations=expectations))
    asset = context.data_sources.add_pandas("profile").add_dataframe_asset("samples")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    result = batch.validate(suite, result_format="SUMMARY")
    return [_outcome(entry) for entry in result.results]


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the record of a verdict."""
    return [asdict(outcome) for outcome in outcomes]


def _expectations(table: Sequence[Rule], section: ValidateSection) -> list[Expectation]:
    expect = load().expectations
    mostly = 1.0 - section.max_quarantined
    return [
        expect.ExpectTableRowCountToBeBetween(min_value=1, description="the dataset is not empty"),
        *(_expectation(expect, rule, mostly) for rule in table),
        expect.ExpectColumnMeanToBeBetween(
            column="quarantined",
            max_value=section.max_quarantined,
            description="few enough samples are in quarantine",
        ),
        expect.ExpectColumnSumToBeBetween(
            column="kept", min_value=section.min_samples, description="enough samples are left"
        ),
    ]


def _expectation(expect: ModuleType, rule: Rule, mostly: float) -> Expectation:
    common = {"column": rule.column, "mostly": mostly, "description": rule.text}
    expectation: Expectation
    match rule.allowed:
        case IsTrue():
            expectation = expect.ExpectColumnValuesToBeInSet(value_set=[True], **common)
        case Between(low, high):
            expectation = expect.ExpectColumnValuesToBeBetween(
                min_value=low, max_value=high, **common
            )
        case OneOf(values):
            expectation = expect.ExpectColumnValuesToBeInSet(value_set=list(values), **common)
        case _:
            assert_never(rule.allowed)
    return expectation


def _outcome(entry: ExpectationValidationResult) -> Outcome:
    config, result = entry.expectation_config, entry.result
    assert config is not None, "every result carries the expectation it is of"
    for name, info in entry.exception_info.items():
        if isinstance(info, dict) and info.get("raised_exception"):
            raise ManyeyesError(
                f"Great Expectations could not compute {config.type} ({name}): "
                f"{info.get('exception_message')}"
            )
    observed = result.get("observed_value")
    return Outcome(
        expectation=config.type,
        column=str(config.kwargs.get("column", "")),
        text=str(config.description),
        success=bool(entry.success),
        num_values=result.get("element_count"),
        num_unexpected=result.get("unexpected_count"),
        observed=None if observed is None else round(float(observed), 6),
    )
