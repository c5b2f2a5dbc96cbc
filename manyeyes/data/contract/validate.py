"""The data contract as a gate: profile, quarantine, verdict, report.

Design decisions:

- Bad samples do not stop a run: they go to ``quarantine.parquet``, one row per sample and reason,
  and no later stage uses them. The gate says no when too many are bad or too few are left, by the
  recipe's thresholds; the report is written before it says so.
- The verdict is Great Expectations', on the columns of the profile. It is imported (seconds) in a
  thread while pictures are decoded, which leaves Python free most of the time.
- Everything written is a function of the dataset and the thresholds, without a time in it: the
  same data validated twice is one artifact, and nothing after it runs again.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.artifact.files import EXPECTATIONS_FILE, METRICS_FILE, QUARANTINE_FILE, REPORT_FILE
from manyeyes.artifact.manifest import atomic_write_json, atomic_write_text
from manyeyes.data.contract.profile import Profile, profile
from manyeyes.data.contract.rules import Rule, breach_text, breaches, rules
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.quarantine import (
    QuarantineRow,
    quarantined_ids,
    write_quarantine,
)
from manyeyes.errors import GateRefused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from manyeyes.config.recipe import ValidateSection
    from manyeyes.data.contract.expectations import Outcome
    from manyeyes.runtime.progress import Progress

__all__ = ["GateResult", "find_breaches", "quarantined_ids", "validate"]


@dataclass(frozen=True)
class Breach(QuarantineRow):
    """One sample breaking one rule."""

    row: int


@dataclass(frozen=True)
class GateResult:
    """What the gate found and decided."""

    num_samples: int
    num_pictures: int
    num_quarantined: int
    reasons: dict[str, int]
    """Reason to the number of samples that have it."""
    splits: dict[str, dict[str, int]]
    """Split and task to the number of samples that are kept."""
    licences: dict[str, int]
    refusals: tuple[str, ...]
    """Why the gate says no; empty if it says yes."""
    num_control_tokens: int = 0
    """Kept samples with what is spelled like a control token; it is learned as plain text."""

    @property
    def passed(self) -> bool:
        """Whether the gate says yes."""
        return not self.refusals

    @property
    def share(self) -> float:
        """Share of the samples in quarantine."""
        return self.num_quarantined / self.num_samples if self.num_samples else 0.0

    def details(self) -> dict[str, JsonValue]:
        """Return the facts for the manifest and ``metrics.json``."""
        return {
            "verdict": "passed" if self.passed else "refused",
            "samples": self.num_samples,
            "pictures": self.num_pictures,
            "quarantined": self.num_quarantined,
            "share_quarantined": round(self.share, 6),
            "kept": self.num_samples - self.num_quarantined,
            "reasons": dict(self.reasons),
            "samples_with_control_tokens": self.num_control_tokens,
            "splits": {split: dict(tasks) for split, tasks in self.splits.items()},
            "licences": dict(self.licences),
            "refusals": list(self.refusals),
        }


def validate(
    dataset_dir: Path, section: ValidateSection, out: Path, progress: Progress
) -> GateResult:
    """Hold a dataset against the contract and write the report into ``out``.

    Args:
        dataset_dir: the dataset.
        section: the recipe's thresholds.
        out: where the report, the metrics and the quarantine go.
        progress: told how many pictures are decoded.

    Raises:
        UserError: the index of the dataset cannot be read at all.
        GateRefused: the contract is broken; the report in ``out`` says where.
    """
    from manyeyes.data.contract.validation_report import render

    out.mkdir(parents=True, exist_ok=True)
    table = rules(section)
    seen, outcomes, found = _examine(dataset_dir, section, table, progress)
    result = _result(seen, found, outcomes, section)
    write_quarantine(out / QUARANTINE_FILE, found)
    atomic_write_json(out / METRICS_FILE, result.details())
    atomic_write_json(out / EXPECTATIONS_FILE, _expectations_json(outcomes))
    atomic_write_text(out / REPORT_FILE, render(result, table, outcomes, found))
    if not result.passed:
        raise GateRefused(f"The data contract is broken: {'; '.join(result.refusals)}.")
    return result


def _examine(
    dataset_dir: Path, section: ValidateSection, table: Sequence[Rule], progress: Progress
) -> tuple[Profile, list[Outcome], list[Breach]]:
    """Profile the dataset, find the breaches, and let Great Expectations judge."""
    from manyeyes.data.contract import expectations

    dataset = Dataset.open(dataset_dir)
    with ThreadPoolExecutor(max_workers=1) as pool:
        loading = pool.submit(expectations.load)
        try:
            seen = profile(dataset, section.max_image_pixels, progress)
        finally:
            dataset.close()
        loading.result()
    found = find_breaches(seen, table)
    bad = {breach.row for breach in found}
    seen.frame["quarantined"] = [float(row in bad) for row in range(len(seen.frame))]
    seen.frame["kept"] = [int(row not in bad) for row in range(len(seen.frame))]
    progress.note(f"{len(bad)} of {len(seen.frame)} samples break the data contract")
    return seen, expectations.judge(seen.frame, table, section), found


def find_breaches(seen: Profile, table: Sequence[Rule]) -> list[Breach]:
    """List every sample with every rule it breaks, in index order."""
    found = []
    ids = seen.frame["id"].tolist()
    for rule in table:
        notes, values = seen.notes.get(rule.column, {}), seen.frame[rule.column]
        for row in breaches(rule, seen.frame).nonzero()[0].tolist():
            detail = notes.get(row) or breach_text(rule, values.iloc[row])
            found.append(Breach(ids[row], rule.reason, detail, row))
    order = {rule.reason: number for number, rule in enumerate(table)}
    return sorted(found, key=lambda breach: (breach.row, order[breach.reason]))


def _result(
    seen: Profile, found: Sequence[Breach], outcomes: Sequence[Outcome], section: ValidateSection
) -> GateResult:
    frame = seen.frame
    kept = frame[frame["kept"] == 1]
    splits: dict[str, dict[str, int]] = {}
    for (split, task), number in sorted(
        Counter(zip(kept["split"], kept["task"], strict=True)).items()
    ):
        splits.setdefault(split, {})[task] = number
    counted = Counter(breach.reason for breach in found)
    reasons = dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))
    num_quarantined = len(frame) - len(kept)
    return GateResult(
        num_samples=len(frame),
        num_pictures=seen.num_pictures,
        num_quarantined=num_quarantined,
        reasons=reasons,
        splits=splits,
        licences=dict(sorted(Counter(kept["licence"].tolist()).items())),
        refusals=_refusals(len(frame), num_quarantined, reasons, outcomes, section),
        num_control_tokens=int((kept["num_control_tokens"] > 0).sum()),
    )


def _refusals(
    num_samples: int,
    num_quarantined: int,
    reasons: dict[str, int],
    outcomes: Sequence[Outcome],
    section: ValidateSection,
) -> tuple[str, ...]:
    """Put the failed expectations into words: what, how much, and which threshold."""
    failed = {outcome.column for outcome in outcomes if not outcome.success}
    if not failed:
        return ()
    if not num_samples:
        return ("the dataset holds no samples",)
    refusals = []
    if failed - {"kept"}:
        counts = ", ".join(f"{reason} {number}" for reason, number in reasons.items())
        refusals.append(
            f"{num_quarantined} of {num_samples} samples "
            f"({num_quarantined / num_samples:.2%}) are quarantined, more than the "
            f"{section.max_quarantined:.2%} that validate.max_quarantined allows ({counts})"
        )
    if "kept" in failed:
        refusals.append(
            f"{num_samples - num_quarantined} samples are left, fewer than the "
            f"{section.min_samples} that validate.min_samples asks for"
        )
    return tuple(refusals)


def _expectations_json(outcomes: Sequence[Outcome]) -> JsonValue:
    from manyeyes.data.contract.expectations import as_json

    records: list[JsonValue] = list(as_json(outcomes))
    return {"success": all(outcome.success for outcome in outcomes), "expectations": records}
