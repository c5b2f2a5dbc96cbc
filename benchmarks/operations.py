"""How much faster the product could be by leaving out operations alone, without a clock.

    python -m benchmarks.operations [--docs FILE]

Counts the operations that each side of ``make bench`` computes in an epoch of each stage: padding,
black pictures, logits of every position and recomputation on the baseline's side, and what is
needed on the product's. A measured ratio above this one comes from elsewhere (kernels, data, the
optimizer); a target above it is not to be had at that shape by leaving out work. Prints a table and
writes it between the marks of ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.baseline.method import AUTHORS, TUNED
from benchmarks.baseline.trainer import order_of
from benchmarks.cached import WARM_TARGET
from benchmarks.parts import DOCUMENT
from benchmarks.results import markdown_table, number, write_between
from benchmarks.shapes import DEEP_TOWERS, FEW_WORDS, MANY_WORDS
from benchmarks.stages import IMPROVED, PRETRAIN, SHIPPED, STAGES, Bench, Scale
from manyeyes.training.cost import cost_of, trained_parts
from manyeyes.training.flops import ModelCost, Trained, language_model_flops, step_flops
from manyeyes.training.freeze import apply_trainable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.baseline.method import Method

MARKER = "operations"
HEADER = ("stage", SHIPPED, IMPROVED, "target")
SCALE = Scale(samples=48, batch_size=4, rounds=1)
SEED = 1


def main(arguments: list[str] | None = None) -> int:
    """Print the table and write it into the document; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operations", description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCUMENT, help="document with the marks")
    chosen = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for which, shape in enumerate((FEW_WORDS, MANY_WORDS, DEEP_TOWERS)):
            for place, stage in enumerate(STAGES):
                rows += rows_of(Bench(stage, shape, SCALE, Path(folder) / f"{which}-{place}"))
    table = markdown_table(HEADER, rows)
    print(table)
    write_between(chosen.docs, MARKER, table)
    return 0


def rows_of(bench: Bench) -> list[tuple[str, ...]]:
    """Return the lines of a stage: as it is, and with the features of frozen towers at hand."""
    apply_trainable(bench.model, bench.section.train)
    theirs = [baseline(bench, method) for method in (AUTHORS, TUNED)]
    kept = (False, True) if bench.stage is PRETRAIN else (False,)
    return [
        (
            bench.title + (", features kept" if keep else ""),
            *(number(one / product(bench, kept=keep)) for one in theirs),
            number(WARM_TARGET if keep else bench.stage.target),
        )
        for keep in kept
    ]


def product(bench: Bench, *, kept: bool = False) -> float:
    """Return the operations of the product's epoch; with ``kept`` frozen towers do not run."""
    encoded = bench.workload.prepared.encoded
    cost, trained = _facts(bench)
    total = step_flops(
        cost,
        trained,
        encoded.lengths.tolist(),
        num_images=int(encoded.num_images.sum()),
        num_supervised=int(encoded.num_supervised.sum()),
    )
    if not kept:
        return total
    frozen = [flops for name, flops in cost.encoder_flops.items() if name not in trained.encoders]
    return total - sum(frozen) * int(encoded.num_images.sum())


def baseline(bench: Bench, method: Method) -> float:
    """Return the operations of the baseline's epoch, all that it computes."""
    encoded = bench.workload.prepared.encoded
    order = order_of(method, bench.workload.prepared, SCALE.batch_size, SEED)
    batches = [order[i : i + SCALE.batch_size] for i in range(0, len(order), SCALE.batch_size)]
    facts = _facts(bench)
    return sum(
        _batch(facts, method, encoded.lengths[batch].tolist(), encoded.num_images[batch].tolist())
        for batch in batches
    )


def _batch(
    facts: tuple[ModelCost, Trained], method: Method, lengths: Sequence[int], images: Sequence[int]
) -> float:
    """Return what a padded batch costs; every method with a full head is counted with it."""
    cost, trained = facts
    assert method.full_head
    shown = sum(max(1, each) if method.blank_pictures else each for each in images)
    padded = [max(lengths)] * len(lengths)
    # step_flops leaves out of the last layer what is not learned: here everything is.
    total = step_flops(cost, trained, padded, num_images=shown, num_supervised=sum(padded))
    if method.recompute:
        total += sum(language_model_flops(cost, length) for length in padded)
        total += shown * sum(cost.encoder_flops[name] for name in trained.encoders)
    return total


def _facts(bench: Bench) -> tuple[ModelCost, Trained]:
    return cost_of(bench.model, bench.workload.canvas_size), trained_parts(bench.model)


if __name__ == "__main__":
    sys.exit(main())
