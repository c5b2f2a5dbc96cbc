"""How much of a training is left beside other programs?

    python -m benchmarks.busy [--seconds 40] [--rounds 3] [--pairs 10]

Fine-tunes the tiny Eagle-X5 on two cores: with nothing else to do, beside two processes that never
rest, and beside six. Two contenders take turns on the same machine, the one that does not run being
stopped: *before*, whose threads wait by spinning for as long as libgomp likes, and *now*
(``manyeyes.training.cpu_sharing``). The fair share is measured, too: what as many processes as
there are cores, each without any need to wait for another, get of the cores beside the same others.

Then pairs of short trainings, one quiet in the old way and one beside two others in the new way,
must end with the same weights, bit for bit. Ends with 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psutil

from benchmarks.results import markdown_table
from manyeyes.errors import ManyeyesError
from manyeyes.training.cpu_sharing import OWN_WISH, WATCH_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

RECIPE = Path(__file__).parents[1] / "recipes/tiny/eagle-x5.yaml"
CORES = 2
BEFORE, NOW = "before", "now"
CONTENDERS: dict[str, dict[str, str]] = {BEFORE: {"GOMP_SPINCOUNT": "300000"}, NOW: {}}
"""What is set in the environment; 300,000 is what libgomp takes where nothing is."""
TARGETS = {0: 0.95, 2: 0.75, 6: 0.6}
"""Processes beside the training, to the least share of what is fair; quiet, of the old rate."""
SETTLE_SECONDS = 3 * WATCH_SECONDS
"""After a contender's turn begins: what it knows of the machine is from its last turn."""
SCALE = 0.2
"""Of the starter data; a step is that of the recipe."""
NEVER_RESTS = "while True: pass"


@dataclass(frozen=True)
class Result:
    """One setting: how many processes beside the training, and what came of it."""

    busy: int
    fair: float
    """Share of the cores (0 to 1) that programs get that never wait for each other."""
    rates: Mapping[str, Sequence[float]]
    """Contender to its steps a second, one per round."""

    def share(self, name: str, quiet: Result) -> float:
        """Return a contender's share of what is fair: of the old way's quiet rate."""
        return median(self.rates[name]) / (median(quiet.rates[BEFORE]) * self.fair)


class Trainer:
    """A training in a process of its own, stopped except in its turns."""

    def __init__(self, folder: Path, data: Path, environment: Mapping[str, str]) -> None:
        """Start it, and stop it once it trains."""
        self._steps = folder / "steps.txt"
        self._process = start(folder, data, environment, steps=1_000_000)
        while self.steps < 3:
            if self._process.poll() is not None:
                raise ManyeyesError(f"A training ended: {(folder / 'log.txt').read_text()}")
            time.sleep(0.05)
        self._process.send_signal(signal.SIGSTOP)

    @property
    def steps(self) -> int:
        """Steps done."""
        return self._steps.read_text().count("\n") if self._steps.exists() else 0

    def turn(self, seconds: float) -> float:
        """Let it train for a while; return its steps a second."""
        self._process.send_signal(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        before, began = self.steps, time.monotonic()
        time.sleep(seconds)
        rate = (self.steps - before) / (time.monotonic() - began)
        self._process.send_signal(signal.SIGSTOP)
        return rate

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def start(
    folder: Path, data: Path, environment: Mapping[str, str], *, steps: int
) -> subprocess.Popen[str]:
    """Start a training that writes a line for every step to ``steps.txt``."""
    folder.mkdir(parents=True)
    inherited = {key: value for key, value in os.environ.items() if key not in OWN_WISH}
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.busy", "--train", data, folder, str(steps)],
            env={**inherited, **environment, "OMP_NUM_THREADS": str(CORES)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def train(data: Path, folder: Path, steps: int) -> None:
    """Train the recipe's fine-tuning from random weights; print the digest of the weights."""
    from manyeyes.config.recipe import load_recipe
    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.data.loading.conversation import Codec
    from manyeyes.model.transformer import load_tokenizer
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.runtime.progress import Progress
    from manyeyes.training.freeze import digest_tensors
    from manyeyes.training.loop import train as train_model

    recipe = load_recipe(RECIPE)
    model = VisionLanguageModel.from_recipe(recipe.model, seed=recipe.seed)
    section, language = recipe.sft, recipe.model.llm
    changes = {"steps": steps, "checkpoint_every": steps, "feature_cache": "off"}
    with (folder / "steps.txt").open("w", buffering=1) as file:

        class Lines(Progress):
            def step(self, step: int, total: int, **facts: object) -> None:
                del total, facts
                file.write(f"{step}\n")

        train_model(
            model,
            Dataset.open(data),
            Codec(
                load_tokenizer(language.weights),
                language.template,
                recipe.model.max_length,
                model.picture_tokens,
            ),
            section.model_copy(update=changes),
            seed=recipe.seed,
            out=folder / "out",
            progress=Lines("sft"),
        )
    print(digest_tensors(model.named_parameters()))


@contextmanager
def beside(num: int) -> Iterator[list[psutil.Process]]:
    """Have so many processes run that never rest."""
    processes = [subprocess.Popen([sys.executable, "-c", NEVER_RESTS]) for _ in range(num)]
    try:
        yield [psutil.Process(process.pid) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def fair_share(busy: int, seconds: float) -> float:
    """Measure which share of the cores programs get beside ``busy`` others."""
    with beside(busy), beside(CORES) as mine:
        time.sleep(0.5)  # they start
        before, began = _used(mine), time.monotonic()
        time.sleep(seconds)
        return (_used(mine) - before) / (time.monotonic() - began) / CORES


def _used(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(each.user + each.system for each in times))


def compare(trainers: Mapping[str, Trainer], busy: int, seconds: float, rounds: int) -> Result:
    """Give the contenders turns beside ``busy`` processes; each round begins with another one."""
    names = list(trainers)
    rates: dict[str, list[float]] = {name: [] for name in names}
    with beside(busy):
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                rates[name].append(trainers[name].turn(seconds))
    return Result(busy, fair_share(busy, min(seconds, 10.0)) if busy else 1.0, rates)


def different_weights(folder: Path, data: Path, pairs: int, steps: int) -> int:
    """Return how many pairs end with different weights: quiet and before, beside two and now."""
    different = 0
    for pair in range(pairs):
        digests = set()
        for name, busy in ((BEFORE, 0), (NOW, 2)):
            with beside(busy):
                process = start(folder / f"{pair}-{name}", data, CONTENDERS[name], steps=steps)
                digests.add(process.communicate()[0])
                if process.returncode:
                    raise ManyeyesError((folder / f"{pair}-{name}" / "log.txt").read_text())
        different += len(digests) > 1
    return different


def table(results: Sequence[Result], seconds: float) -> str:
    """Return what was found as a table, steps in ``seconds``."""
    quiet = results[0]
    header = ("beside", "fair share", "steps before", "steps now", "before", "now", "target")
    rows = []
    for result in results:
        before, now = (median(result.rates[name]) * seconds for name in (BEFORE, NOW))
        fair = median(quiet.rates[BEFORE]) * result.fair * seconds
        shares = [f"{result.share(name, quiet):.0%}" for name in (BEFORE, NOW)]
        target = f"{TARGETS[result.busy]:.0%}"
        steps = (f"{fair:.0f}", f"{before:.1f}", f"{now:.1f}")
        rows.append((str(result.busy) if result.busy else "nothing", *steps, *shares, target))
    return markdown_table(header, rows)


def missed(results: Sequence[Result], different: int) -> list[str]:
    """Return in words what misses its target."""
    quiet = results[0]
    found = [
        f"beside {result.busy or 'nothing'}: {result.share(NOW, quiet):.0%} of the fair share"
        for result in results
        if result.share(NOW, quiet) < TARGETS[result.busy]
    ]
    return found + ([f"{different} pairs with different weights"] if different else [])


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="of a turn (default: 40)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--pairs", type=int, default=10, help="of weights compared (default: 10)")
    parser.add_argument("--steps", type=int, default=6, help="of a pair (default: 6)")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.train:
        data, folder, steps = chosen.train
        train(Path(data), Path(folder), int(steps))
        return 0
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory(prefix="manyeyes-") as name:
        folder = Path(name)
        os.environ["MANYEYES_HOME"] = str(folder / "home")
        data = _prepare(folder / "data")
        trainers = {each: Trainer(folder / each, data, CONTENDERS[each]) for each in CONTENDERS}
        try:
            results = []
            for busy in TARGETS:
                results.append(compare(trainers, busy, chosen.seconds, chosen.rounds))
                print(table(results, chosen.seconds), end="\n\n", flush=True)
        finally:
            for trainer in trainers.values():
                trainer.end()
        different = different_weights(folder / "pairs", data, chosen.pairs, chosen.steps)
    print(f"{chosen.pairs} pairs, {different} with different weights")
    wrong = missed(results, different)
    print("; ".join(["missed", *wrong]) if wrong else "all targets reached")
    return int(bool(wrong))


def _prepare(out: Path) -> Path:
    """Make the data of the recipe, less of it."""
    from manyeyes.config.recipe import load_recipe
    from manyeyes.config.recipe.slices import PrepareSlice
    from manyeyes.pipeline.stages import StageContext
    from manyeyes.pipeline.stages.prepare import prepare
    from manyeyes.runtime.progress import Progress

    recipe = load_recipe(RECIPE)
    section = recipe.data.model_copy(update={"scale": SCALE})
    out.mkdir()
    prepare(
        PrepareSlice(seed=recipe.seed, data=section), StageContext({}, out, Progress("prepare"))
    )
    return out


if __name__ == "__main__":
    sys.exit(main())
