"""kill -9 in the middle of a stage of the real pipeline, then the same command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pause_kit import Pause
from pipeline_kit import environment, small_recipe, succeed_json

from benchmarks.single_experts import alone
from manyeyes.artifact.manifest import is_finished, read_manifest
from manyeyes.config.recipe import load_recipe, recipe_yaml

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("kill")]


def one_expert(folder: Path) -> None:
    """Write a recipe with one expert and enough fine-tuning to be killed in."""
    folder.mkdir()
    recipe = alone(load_recipe(small_recipe(folder, sft_steps=12)), "clip")
    (folder / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")


def progress_of(folder: Path) -> list[dict]:
    lines = []
    for path in folder.glob(".manyeyes/runs/*/progress.jsonl"):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    return lines


def kill_in_sft(folder: Path) -> None:
    """Start the pipeline and kill everything in it once ``sft`` has saved a state."""
    saved = Pause(folder, "saved", 4, stage="sft")
    process = subprocess.Popen(
        [sys.executable, "-m", "manyeyes", "run", "recipe.yaml", "--out", "out"],
        cwd=folder,
        env=saved.within(environment(folder)),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (training,) = saved.wait(process)
    os.kill(training, signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_run_continues_and_ends_with_the_same_weights(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    one_expert(calm)
    one_expert(killed)
    kill_in_sft(killed)
    assert not is_finished(killed / "out/sft")
    succeed_json(killed, "run", "recipe.yaml", "--out", "out")
    notes = [line["text"] for line in progress_of(killed) if line["event"] == "note"]
    assert "continues from step 4 of 12" in notes
    succeed_json(calm, "run", "recipe.yaml", "--out", "out")
    assert read_manifest(killed / "out/sft").digest == read_manifest(calm / "out/sft").digest
