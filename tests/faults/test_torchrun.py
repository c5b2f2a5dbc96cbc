"""The command line under torchrun: a process is killed, the same command is given again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pause_kit import Pause
from pipeline_kit import TINY, environment
from training_kit import make_dataset

from benchmarks.single_experts import alone
from manyeyes.artifact.files import QUARANTINE_FILE
from manyeyes.artifact.manifest import Header, open_artifact, write_manifest
from manyeyes.config.recipe import Batch, DeepSpeed, PrealignSection, load_recipe, recipe_yaml
from manyeyes.data.dataset.quarantine import write_quarantine

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("parallel")]
STEPS = 8


def manifest(folder, kind, stage, **parents):
    """Finish a folder as if a stage had made it."""
    header = {"kind": kind, "stage": stage, "name": stage, "recipe_slice": "", "fingerprint": ""}
    rest = {"parents": parents, "code": "", "revision": "", "libraries": {}, "seed": 0}
    return write_manifest(folder, Header(**header, **rest)).digest


def prepare(folder):
    """Write data, a validation report and a recipe for two processes."""
    make_dataset(folder / "data", asked=True)
    dataset = manifest(folder / "data", "dataset", "prepare")
    (folder / "report").mkdir()
    write_quarantine(folder / "report" / QUARANTINE_FILE, [])
    manifest(folder / "report", "report", "validate", dataset=dataset)
    recipe = alone(load_recipe(TINY), "clip")
    section = recipe.prealign.experts["clip"].model_copy(
        update={
            "steps": STEPS,
            "batch": Batch(size=4, per_device=1, accumulation="auto"),
            "checkpoint_every": 2,
            "sources": {"colours": 1.0, "chat": 1.0},
            "engine": DeepSpeed(kind="deepspeed", zero=2, offload="none"),
        }
    )
    # The stages after this one, too, find what they need in these data: all are looked at first.
    later = {"sources": section.sources}
    asked = {"tasks": {"colours": "exact_match"}}
    recipe = recipe.model_copy(
        update={
            "prealign": PrealignSection(experts={"clip": section}),
            "pretrain": recipe.pretrain.model_copy(update=later),
            "sft": recipe.sft.model_copy(update=later),
            "evaluation": recipe.evaluation.model_copy(update=asked),
        }
    )
    (folder / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")


def start(folder, pause=None):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "manyeyes", "prealign", "recipe.yaml", "--expert", "clip", "--json"]
    inputs = ["--dataset", "data", "--validation", "report", "--out", "out"]
    variables = {**environment(folder), "MANYEYES_PROGRESS": str(folder / "progress.jsonl")}
    return subprocess.Popen(
        [sys.executable, *torchrun, *stage, *inputs],
        cwd=folder,
        env=pause.within(variables) if pause else variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def notes(folder):
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    return [line["text"] for line in lines if line["event"] == "note"]


def test_a_killed_process_ends_the_stage_and_the_same_command_finishes_it(tmp_path):
    prepare(tmp_path)
    saved = Pause(tmp_path, "saved", 2)
    launcher = start(tmp_path, saved)
    os.kill(saved.wait(launcher, ranks=2)[1], signal.SIGKILL)
    saved.go_on()
    _, said = launcher.communicate()
    assert launcher.returncode == 1
    assert "Training lost process 1 of 2: it is gone, or did not answer" in said
    assert not (tmp_path / "out").exists()

    again = start(tmp_path)
    answer, said = again.communicate()
    assert again.returncode == 0, said
    assert json.loads(answer)["state"] == "done"
    checkpoint = open_artifact(tmp_path / "out", "checkpoint")
    assert checkpoint.details["steps"] == STEPS
    assert {Path(name).name for name in checkpoint.files} >= {
        "encoders.clip.safetensors",
        "projector.safetensors",
        "llm.safetensors",
    }
    lines = (tmp_path / "out/measurements/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
    assert f"continues from step 2 of {STEPS}" in notes(tmp_path)
    records = list(tmp_path.glob(".manyeyes/runs/*/stages/*.json"))
    assert [json.loads(path.read_text())["state"] for path in records] == ["done"]
