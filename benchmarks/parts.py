"""What the suites for processors and for cards share: parts, run one after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import stages
from benchmarks.results import Findings
from manyeyes.config.recipe import Batch, Constant, SingleProcess, TrainSection

if TYPE_CHECKING:
    from benchmarks.shapes import Shape
    from benchmarks.stages import Bench, Scale, Stage

DOCUMENT = Path("docs/performance.md")
PartFunction = Callable[[Findings], None]
"""Measures something and adds what it found."""
Part = tuple[str, PartFunction]


def run(parts: list[Part], findings: Findings) -> list[str]:
    """Run the parts and print what each has found; return the names of those left by Ctrl-C."""
    for number, (name, part) in enumerate(parts):
        torch.set_num_threads(1)
        rows, tables = len(findings.rows), len(findings.tables)
        began = time.perf_counter()
        try:
            part(findings)
        except KeyboardInterrupt:
            return [name for name, _ in parts[number:]]
        print(f"{name} ({time.perf_counter() - began:.0f} s)", flush=True)
        for row in findings.rows[rows:]:
            print("  " + "  ".join(cell for cell in row.cells() if cell), flush=True)
        for table in findings.tables[tables:]:
            print(f"  {table.title}")
            for cells in table.rows:
                print("    " + "  ".join(cells), flush=True)
    return []


def stage_part(
    stage: Stage,
    shape: Shape,
    scale: Scale,
    folder: Path,
    measure: Callable[[Bench, Findings], None] = stages.measure,
) -> PartFunction:
    """Return the part that measures a stage, on as many threads as its scale says."""

    def part(findings: Findings) -> None:
        torch.set_num_threads(scale.threads)
        measure(stages.Bench(stage, shape, scale, folder), findings)

    return part


def llm_section(kind: str, rows: int) -> TrainSection:
    """Return a section that trains the language model alone."""
    return TrainSection.model_validate(
        {
            "train": ("llm.*",),
            "steps": 1,
            "batch": Batch(size=rows, per_device=rows, accumulation=1),
            "learning_rate": 1e-4,
            "learning_rates": (),
            "schedule": Constant(kind="constant", warmup=0.0),
            "weight_decay": 0.0,
            "gradient_clipping": 1.0,
            "precision": kind,
            "checkpoint_every": 1,
            "sources": {"text": 1.0},
            "engine": SingleProcess(kind="single"),
        }
    )
