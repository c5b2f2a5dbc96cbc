"""Trains in as many processes as it is started in: ``python parallel_kit.py FOLDER CASES``.

``CASES`` is a JSON list. Each case has a ``name`` and changes to the section of ``training_kit``;
its results lie in ``FOLDER/NAME``. One start does many cases, because importing costs more than
training.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import training_kit

from manyeyes.errors import ManyeyesError
from manyeyes.runtime import ranks
from manyeyes.runtime.progress import Progress

KIT = Path(__file__)


def launch(folder, cases, processes=2, environment=None, **options):
    """Start the cases in some processes (0: without torchrun); return the finished process."""
    home = str(Path(folder) / "home")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "MANYEYES_HOME": home}
    variables |= environment or {}
    variables["PYTHONPATH"] = os.pathsep.join([str(KIT.parents[1]), str(KIT.parent)])
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [sys.executable, *(torchrun if processes else []), str(KIT), str(folder)]
    return subprocess.Popen([*command, json.dumps(cases)], env=variables, text=True, **options)


def finish(folder, cases, processes=2):
    """Start the cases and wait; they must succeed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = launch(folder, cases, processes, **pipes)
    said, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, said
    return said


def rows(folder, name):
    """Return the curve of a case."""
    path = Path(folder) / name / "out" / "measurements" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def section_of(case):
    """Return the section a case describes."""
    from manyeyes.config.recipe import Batch, Lora, TokenBudget

    changes = {
        key: value
        for key, value in case.items()
        if key in ("steps", "precision", "sources", "recompute", "feature_cache")
    }
    if "lora" in case:
        changes["lora"] = Lora(modules=tuple(case["lora"]), rank=2, alpha=4)
    if "every" in case:
        changes["checkpoint_every"] = case["every"]
    if "train" in case:
        changes["train"] = tuple(case["train"])
    if "zero" in case:
        changes["engine"] = training_kit.deepspeed(case["zero"], case.get("offload", "none"))
    size, per_device = case.get("batch", (8, 2))
    batch = Batch(
        size=size,
        per_device=per_device,
        accumulation=case.get("accumulation", "auto"),
        packing=TokenBudget(tokens=case["packing"]) if "packing" in case else None,
    )
    return training_kit.make_section(
        **{"steps": 4, "schedule": training_kit.constant(), "batch": batch, **changes}
    )


class Stopper(Progress):
    """Progress that sends this process a signal when a step is done."""

    at = 0

    def step(self, step, total, **facts):
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def train_case(place, case, dataset):
    """Train one case in ``place``; return the error that ended it, or None."""
    import torch
    from safetensors.torch import save_file

    if "after" in case and not ranks.rank():
        # The second half once more, from the state in the middle.
        shutil.copytree(place.with_name(case["after"]), place)
        shutil.rmtree(place / "out" / "state" / f"step-{case['steps']}")
    model = training_kit.make_model(
        experts=case.get("experts", ["clip"]), dropout=case.get("dropout", 0.0)
    )
    if case.get("poison"):
        with torch.no_grad():
            model.projector[0].weight.fill_(float("nan"))
    progress = Stopper("test")
    progress.at = case["stop"] if "stop" in case and ranks.rank() == ranks.world_size() - 1 else 0
    options = {"model": model, "dataset": dataset, "section": section_of(case)}
    try:
        training_kit.run(place, progress=progress, **options)
    except ManyeyesError as error:
        if "expect" not in case:
            raise
        place.mkdir(parents=True, exist_ok=True)
        (place / "error.json").write_text(
            json.dumps([type(error).__name__, error.exit_code, str(error)])
        )
        return
    if not ranks.rank():
        weights = {n: p.detach().contiguous() for n, p in model.named_parameters()}
        save_file(weights, place / "final.safetensors")


def main():
    """Do every case."""
    import torch

    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.training.distributed import joined

    torch.set_num_threads(1)
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    dataset = Dataset.open(folder / "data")
    try:
        with joined():
            for case in cases:
                scratch = [f"process-{ranks.rank()}"] if ranks.rank() else []
                train_case(folder.joinpath(*scratch, case["name"]), case, dataset)
    except ManyeyesError as error:
        sys.stderr.write(f"[{ranks.rank()}] {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)  # as the command line does


if __name__ == "__main__":
    main()
