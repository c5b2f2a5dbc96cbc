"""Training, stage by stage: the product beside the baseline as shipped and the baseline tuned.

Each contender trains one epoch of the same samples from the same weights; their times are those of
the steps. Parity is required before a stage is timed. The stages are those of the product:

- ``prealign``: one expert and its projector train against a frozen language model.
- ``pretrain``: the projector alone.
- ``sft``: everything, with 19% of the samples (Eagle's share) or half of them text alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from torch import nn

from benchmarks import ours, parity
from benchmarks.baseline import trainer
from benchmarks.baseline.method import AUTHORS, TUNED, ladder
from benchmarks.clock import interleave
from benchmarks.results import Row, Spread, Table, number
from benchmarks.shapes import build_model, section_for, vision_share
from benchmarks.workload import make_workload
from manyeyes.training.freeze import apply_trainable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from benchmarks.baseline.method import Method
    from benchmarks.clock import Cost
    from benchmarks.results import Findings
    from benchmarks.shapes import Shape
    from benchmarks.workload import Kind, Workload
    from manyeyes.config.recipe import TrainSection
    from manyeyes.model.vlm import VisionLanguageModel

OURS, SHIPPED, IMPROVED = "manyeyes", "LLaVA-style trainer", "the same, tuned"
KEPT = "manyeyes, features kept before"
TUNED_TARGET = 1.2
COSTS_HEADER = ("stage", "contender", "samples/s", "tokens/s", "CPU s per sample", "mean loss")


@dataclass(frozen=True)
class Stage:
    """A stage as it is measured."""

    name: str
    kind: Kind
    text_share: float
    train: tuple[str, ...]
    experts: tuple[str, ...]
    target: float
    """Against the baseline as shipped."""


BOTH = ("clip", "eva02")
PREALIGN = Stage("prealign", "captions", 0.0, ("encoders.clip.*", "projector.*"), ("clip",), 2.0)
PRETRAIN = Stage("pretrain", "captions", 0.0, ("projector.*",), BOTH, 2.5)
SFT = Stage("sft, 19% text", "instructions", 0.19, ("*",), BOTH, 2.0)
SFT_TEXT = Stage("sft, 50% text", "instructions", 0.5, ("*",), BOTH, 3.0)
STAGES = (PREALIGN, PRETRAIN, SFT, SFT_TEXT)


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    samples: int
    batch_size: int
    rounds: int
    precision: str = "float32"
    device: str = "cpu"
    threads: int = 1
    """That train; the workers that make batches come on top."""


@dataclass
class Bench:
    """One stage on one shape, ready to be run again and again."""

    stage: Stage
    shape: Shape
    scale: Scale
    folder: Path

    def __post_init__(self) -> None:
        """Make the samples, the weights and the section."""
        self.workload: Workload = make_workload(
            self.folder / "data",
            self.stage.kind,
            self.shape,
            num=self.scale.samples,
            text_share=self.stage.text_share,
        )
        self.model: VisionLanguageModel = build_model(self.shape, experts=self.stage.experts)
        self.share = vision_share(self.model, self.workload)
        nn.Module.to(self.model, self.scale.device)  # transformers' own wraps the types away
        self.section: TrainSection = section_for(
            self.workload,
            self.stage.train,
            batch_size=self.scale.batch_size,
            precision=self.scale.precision,
        )

    @property
    def title(self) -> str:
        """The stage with what its ratio depends on."""
        threads = f", {self.scale.threads} threads" if self.scale.threads > 1 else ""
        return (
            f"{self.stage.name}, vocabulary {self.shape.vocabulary}, "
            f"towers {self.share:.0%} of the FLOPs{threads}"
        )

    def require_parity(self, methods: Mapping[str, Method]) -> None:
        """Check that all compute the same training.

        Raises:
            ManyeyesError: one does not.
        """
        low = self.scale.precision == "bfloat16"
        bounds = parity.BFLOAT16 if low else parity.FLOAT32
        indices = parity.choose(self.workload, self.scale.batch_size)
        for name, method in methods.items():
            found = parity.measure(self.model, self.workload, self.section, method, indices)
            parity.require(f"{self.title}, {name}", found, bounds)

    def product(self, section: TrainSection | None = None) -> Cost:
        """Train an epoch with the product's engine."""
        chosen = section or self.section
        model = copy.deepcopy(self.model)
        return ours.train_epoch(model, self.workload, chosen, self.folder / "ours", 1)

    def keeping(self, home: str) -> Cost:
        """Train an epoch that keeps the frozen encoders' features in a folder of its own."""
        section = self.section.model_copy(update={"feature_cache": "on"})
        with ours.home_in(self.folder / home):
            return self.product(section)

    def baseline(self, method: Method) -> Cost:
        """Train an epoch with the baseline."""
        model = copy.deepcopy(self.model)
        apply_trainable(model, self.section.train)
        out = self.folder / "baseline"
        return trainer.train_epoch(model, self.workload, self.section, method, out, 1)


def contenders(bench: Bench, methods: Mapping[str, Method]) -> dict[str, Callable[[], Cost]]:
    """Return what is run in turn: the product first."""

    def runner(method: Method) -> Callable[[], Cost]:
        return lambda: bench.baseline(method)

    found: dict[str, Callable[[], Cost]] = {OURS: bench.product}
    return {**found, **{name: runner(method) for name, method in methods.items()}}


def measure(bench: Bench, findings: Findings) -> None:
    """Check parity, run all, and add the rows and the table of a stage."""
    methods = {SHIPPED: AUTHORS, IMPROVED: TUNED}
    bench.require_parity(methods)
    costs = interleave(contenders(bench, methods), bench.scale.rounds)
    for name, target in ((SHIPPED, bench.stage.target), (IMPROVED, TUNED_TARGET)):
        findings.rows.append(row_of(bench.title, name, costs[OURS], costs[name], target))
    findings.tables.append(
        Table(f"Rates and losses: {bench.title}", COSTS_HEADER, _cost_rows(bench, costs))
    )


def row_of(title: str, against: str, mine: list[Cost], theirs: list[Cost], target: float) -> Row:
    """Make the row of a comparison: wall time decides, processor time and memory stand beside."""
    spread = Spread.of_pairs([c.seconds for c in mine], [c.seconds for c in theirs])
    cpu = Spread.of_pairs([c.cpu_seconds for c in mine], [c.cpu_seconds for c in theirs])
    details = f"{number(cpu.ratio)} in processor seconds"
    if mine[0].peak_bytes:
        memory = max(c.peak_bytes for c in theirs) / max(c.peak_bytes for c in mine)
        details += f", {number(memory)} in peak memory"
    return Row(title, against, spread, target, details)


def _cost_rows(bench: Bench, costs: Mapping[str, list[Cost]]) -> tuple[tuple[str, ...], ...]:
    num = len(bench.workload.prepared.samples)
    rows = []
    for name, found in costs.items():
        seconds = Spread.of([cost.seconds for cost in found]).ratio
        cpu = Spread.of([cost.cpu_seconds for cost in found]).ratio
        loss = Spread.of([fmean(cost.losses) for cost in found]).ratio
        tokens = f"{bench.workload.num_tokens / seconds:,.0f}"
        rates = (f"{num / seconds:.1f}", tokens, f"{cpu / num:.4f}", f"{loss:.4f}")
        rows.append((bench.stage.name, name, *rates))
    return tuple(rows)


def climb(bench: Bench, findings: Findings) -> None:
    """Add the ladder: what each technique gives on top of those above it, and the product's."""
    rungs = dict(ladder())
    bench.require_parity(rungs)
    running = contenders(bench, rungs)
    running[OURS] = running.pop(OURS)  # the last rung
    if bench.stage is PRETRAIN:
        bench.keeping("warm")
        running[KEPT] = lambda: bench.keeping("warm")
    costs = interleave(running, bench.scale.rounds)
    first = next(iter(costs.values()))
    rows = []
    for name, found in costs.items():
        spread = Spread.of_pairs([c.seconds for c in found], [c.seconds for c in first])
        cpu = Spread.of_pairs([c.cpu_seconds for c in found], [c.cpu_seconds for c in first])
        low_to_high = f"{number(spread.low)} to {number(spread.high)}"
        rows.append((name, number(spread.ratio), low_to_high, number(cpu.ratio)))
    header = ("method (cumulative)", "times as fast", "lowest to highest", "in processor seconds")
    findings.tables.append(Table(f"The ladder: {bench.title}", header, tuple(rows)))
