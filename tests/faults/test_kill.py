"""kill -9 in the middle of a stage of the real pipeline, then the same command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipeline_kit import environment, small_recipe, succeed_json

from benchmarks.single_experts import alone
from manyeyes.artifact import is_finished, read_manifest
from manyeyes.recipe import load_recipe, recipe_yaml

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


def states_of(folder: Path) -> list[Path]:
    return list(folder.glob(".manyeyes/work/*/state/step-*"))


def kill_in_sft(folder: Path) -> None:
    """Start the pipeline and kill everything in it once ``sft`` has saved a state."""
    process = subprocess.Popen(
        [sys.executable, "-m", "manyeyes", "run", "recipe.yaml", "--out", "out"],
        cwd=folder,
        env=environment(folder),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        in_sft = any(line["stage"] == "sft" for line in progress_of(folder))
        if in_sft and any(not path.name.endswith(".tmp") for path in states_of(folder)):
            break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    for entry in folder.glob(".manyeyes/runs/*/journal.jsonl"):
        for line in entry.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "started" and event["step"] == "sft":
                os.kill(event["process"], signal.SIGKILL)
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
    assert any("continu" in note for note in notes), notes
    succeed_json(calm, "run", "recipe.yaml", "--out", "out")
    assert read_manifest(killed / "out/sft").digest == read_manifest(calm / "out/sft").digest
