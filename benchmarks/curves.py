"""Do both sides learn the same? Loss curves of the product and of the LLaVA-style trainer.

    python -m benchmarks.curves [--steps N] [--docs FILE]

The zoo's CLIP, EVA-02 and language model learn the starter data: the projector alone from captions,
then everything from questions, each from the same weights on both sides. Two comparisons:

- *The same samples in the same order.* Both sides then do the same steps, and each step's loss must
  be the same but for rounding, which grows from step to step. Where it is not, the command fails.
- *Each side in its own order.* The curves differ as those of two orders of one side do. Held
  against each other are the means of the last quarter, beside twice the standard error of their
  difference, and the product's own with another seed.

Prints a table, and writes it and a picture of the curves into the documentation.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

# Said before the libraries that read it are imported: whoever looks for an accelerator finds none.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
import transformers

from benchmarks import ours
from benchmarks.baseline import trainer
from benchmarks.baseline.method import AUTHORS
from benchmarks.parts import DOCUMENT
from benchmarks.results import markdown_table, write_between
from benchmarks.shapes import section_for
from benchmarks.starter import starter_workload
from manyeyes.config.recipe import load_recipe
from manyeyes.errors import ManyeyesError
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.training.freeze import apply_trainable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RECIPE = Path(__file__).parent.parent / "recipes/tiny/eagle-x5.yaml"
EXPERTS = ("clip", "eva02")
MARKER = "curves"
PICTURE = "loss-curves.svg"
SMOOTHED = 10
"""Steps whose mean is drawn."""
LARGEST_DIFFERENCE = 0.001
"""Mean over the steps of how far the losses of the same steps may be apart."""
PRODUCT, SAME, OWN, AGAIN = (
    "manyeyes",
    "LLaVA-style trainer, the same order",
    "LLaVA-style trainer, its own order",
    "manyeyes, another order",
)
Curves = dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Lesson:
    """A stage whose curves are drawn."""

    name: str
    train: tuple[str, ...]
    tasks: tuple[str, ...]


LESSONS = (
    Lesson("pretrain", ("projector.*",), ("captions",)),
    Lesson("sft", ("*",), ("numbers", "charts", "documents", "scenes", "pope", "chat")),
)


def main(arguments: list[str] | None = None) -> int:
    """Train, compare, write; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--docs", type=Path, default=DOCUMENT, help="document with the marks")
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # untyped there
    torch.set_num_threads(1)
    found: dict[str, Curves] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for lesson in LESSONS:
                found[lesson.name] = curves_of(lesson, chosen.steps, Path(folder))
                require_same_steps(lesson.name, found[lesson.name])
    except ManyeyesError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    text = report(found)
    print(text)
    draw(found, chosen.docs.parent / PICTURE)
    write_between(chosen.docs, MARKER, f"{text}\n\n![loss curves of both sides]({PICTURE})")
    return 0


def curves_of(lesson: Lesson, steps: int, folder: Path) -> Curves:
    """Train a lesson on both sides and return each contender's loss per step."""
    workload = starter_workload(folder / "starter", lesson.tasks)
    section = section_for(workload, lesson.train, batch_size=16).model_copy(update={"steps": steps})
    model = small_model()

    def product(seed: int) -> tuple[float, ...]:
        return ours.train_epoch(
            copy.deepcopy(model), workload, section, folder / "ours", seed
        ).losses

    def baseline(order: Sequence[int] | None) -> tuple[float, ...]:
        trained = copy.deepcopy(model)
        apply_trainable(trained, section.train)
        out = folder / "baseline"
        return trainer.train_epoch(
            trained, workload, section, AUTHORS, out, seed=1, order=order
        ).losses

    contenders: dict[str, Callable[[], tuple[float, ...]]] = {
        PRODUCT: lambda: product(1),
        SAME: lambda: baseline(ours.order_of(workload, section, seed=1)),
        OWN: lambda: baseline(None),
        AGAIN: lambda: product(2),
    }
    return {name: run() for name, run in contenders.items()}


def small_model() -> VisionLanguageModel:
    """Build two experts of the tiny Eagle's in front of its language model."""
    model = load_recipe(RECIPE).model
    encoders = tuple(encoder for encoder in model.encoders if encoder.name in EXPERTS)
    return VisionLanguageModel.from_recipe(model.model_copy(update={"encoders": encoders}), seed=0)


def require_same_steps(name: str, curves: Curves) -> None:
    """Check that the same steps had the same losses.

    Raises:
        ManyeyesError: they are further apart than rounding explains.
    """
    apart = mean_difference(curves)
    if not apart <= LARGEST_DIFFERENCE:
        raise ManyeyesError(
            f"{name}: in the same order the losses of a step are {apart:.4f} apart in the mean, "
            f"more than {LARGEST_DIFFERENCE}, so the two sides do not learn the same; find out "
            "which of them is wrong."
        )


def mean_difference(curves: Curves) -> float:
    """Return how far the losses of the same steps are apart in the mean."""
    pairs = zip(curves[PRODUCT], curves[SAME], strict=True)
    return fmean(abs(mine - theirs) for mine, theirs in pairs)


def tail(losses: Sequence[float]) -> Sequence[float]:
    """Return the last quarter."""
    return losses[-max(2, len(losses) // 4) :]


def twice_the_error(one: Sequence[float], other: Sequence[float]) -> float:
    """Return two standard errors of the difference of two curves' last quarters."""
    variances = (stdev(tail(each)) ** 2 / len(tail(each)) for each in (one, other))
    return 2.0 * math.sqrt(sum(variances))


def report(found: Mapping[str, Curves]) -> str:
    """Return the tables as markdown."""
    header = ("stage", "contender", "first step", "last quarter", "less manyeyes's", "noise")
    rows = []
    for stage, curves in found.items():
        mine = curves[PRODUCT]
        for name, losses in curves.items():
            cells = [stage, name, f"{losses[0]:.4f}", f"{fmean(tail(losses)):.4f}"]
            # Nothing is drawn at random between the same steps.
            random = name not in (PRODUCT, SAME)
            cells.append(f"{fmean(tail(losses)) - fmean(tail(mine)):.4f}" if random else "")
            cells.append(f"{twice_the_error(losses, mine):.4f}" if random else "")
            rows.append(cells)
    steps = len(next(iter(found.values()))[PRODUCT])
    same = ", ".join(f"{mean_difference(curves):.0e} in {name}" for name, curves in found.items())
    return (
        f"{steps} steps of 16 samples. In the same order the losses of a step are apart in the "
        f"mean by {same}. Noise is twice the standard error of the difference.\n\n"
        + markdown_table(header, rows)
    )


def draw(found: Mapping[str, Curves], path: Path) -> None:
    """Draw the curves, each point the mean of some steps."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # The same curves give the same bytes.
    matplotlib.rcParams.update({"svg.hashsalt": "manyeyes", "font.size": 9})
    figure, panels = pyplot.subplots(1, len(found), figsize=(9, 3.2), squeeze=False)
    for panel, (stage, curves) in zip(panels[0], found.items(), strict=True):
        for name, losses in curves.items():
            size = min(SMOOTHED, len(losses))
            smooth = np.convolve(losses, np.ones(size) / size, mode="valid")
            dashed = "--" if name == SAME else "-"
            panel.plot(range(size, len(losses) + 1), smooth, dashed, label=name, linewidth=1.2)
        panel.set(title=stage, xlabel="step", ylabel=f"loss, mean of {SMOOTHED} steps")
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
