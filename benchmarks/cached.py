"""Pretraining with the frozen encoders' features kept on disk: the first epoch and the later ones.

A sweep, an ablation or a second epoch finds every picture's features there (*warm*); the first
epoch writes them (*cold*), which may cost a tenth of an epoch that keeps nothing. The baseline has
no such thing and computes them each time.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks import ours
from benchmarks.baseline.method import AUTHORS, TUNED
from benchmarks.clock import interleave
from benchmarks.stages import IMPROVED, SHIPPED, TUNED_TARGET, row_of
from manyeyes.training.feature_store import features_folder

if TYPE_CHECKING:
    from benchmarks.clock import Cost
    from benchmarks.results import Findings
    from benchmarks.stages import Bench

WARM_TARGET = 4.0
COLD_TARGET = 0.91
"""An epoch that keeps nothing over one that writes: at most 1.1 times as long."""


def measure(bench: Bench, findings: Findings) -> None:
    """Add the rows of a stage whose encoders are all frozen."""

    def cold() -> Cost:
        with ours.home_in(bench.folder / "cold"):
            shutil.rmtree(features_folder(), ignore_errors=True)
        return bench.keeping("cold")

    def warm() -> Cost:
        return bench.keeping("warm")

    bench.require_parity({SHIPPED: AUTHORS, IMPROVED: TUNED})
    warm()
    costs = interleave(
        {
            "warm": warm,
            "cold": cold,
            "none": bench.product,
            SHIPPED: lambda: bench.baseline(AUTHORS),
            IMPROVED: lambda: bench.baseline(TUNED),
        },
        bench.scale.rounds,
    )
    title = bench.title.replace(bench.stage.name, f"{bench.stage.name}, features kept", 1)
    for against, target in ((SHIPPED, WARM_TARGET), (IMPROVED, TUNED_TARGET)):
        findings.rows.append(row_of(title, against, costs["warm"], costs[against], target))
    title = title.replace("features kept", "keeping features", 1)
    against = "keeping nothing"
    findings.rows.append(row_of(title, against, costs["cold"], costs["none"], COLD_TARGET))
