"""Kill training with SIGKILL, run the same command again: the same weights, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_kit import make_dataset

pytestmark = pytest.mark.faults

KIT = Path(__file__).parents[1] / "training_kit.py"
STEPS, EVERY = 14, 4


def start(folder, progress=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(KIT.parents[1]), str(KIT.parent)])
    if progress:
        environment["MANYEYES_PROGRESS"] = str(progress)
    command = [sys.executable, str(KIT), str(folder), str(STEPS), str(EVERY)]
    return subprocess.Popen(command, env=environment)


def finish(folder, progress=None):
    process = start(folder, progress)
    assert process.wait(timeout=300) == 0
    return (folder / "final.safetensors").read_bytes()


def curve(folder):
    path = folder / "out" / "measurements" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def kill_when(process, ready):
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def steps_on_disk(folder):
    return len(curve(folder))


def notes(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["text"] for line in lines if line["event"] == "note"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed: its weights and its losses."""
    folder = tmp_path_factory.mktemp("whole")
    make_dataset(folder / "data")
    return finish(folder), [row["loss"] for row in curve(folder)]


def test_killed_between_and_within_saves_ends_with_the_same_weights(tmp_path, whole):
    """Three kills: before any state, in the middle of a step, and while a state is written."""
    make_dataset(tmp_path / "data")
    state = tmp_path / "out" / "state"
    kill_when(start(tmp_path), lambda: steps_on_disk(tmp_path) >= 2)
    kill_when(start(tmp_path), lambda: steps_on_disk(tmp_path) >= EVERY + 2)
    assert (state / f"step-{EVERY}").is_dir()
    kill_when(start(tmp_path), lambda: any(state.glob(f"step-{2 * EVERY}*")))
    progress = tmp_path / "progress.jsonl"
    weights = finish(tmp_path, progress)
    assert any(note.startswith("continues from step ") for note in notes(progress))
    assert weights == whole[0]
    rows = curve(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows] == whole[1]


def test_a_damaged_newest_state_costs_steps_but_not_the_result(tmp_path, whole):
    make_dataset(tmp_path / "data")
    state = tmp_path / "out" / "state"
    newest = state / f"step-{2 * EVERY}"
    kill_when(start(tmp_path), newest.is_dir)
    weights_file = newest / "weights.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-100])
    progress = tmp_path / "progress.jsonl"
    assert finish(tmp_path, progress) == whole[0]
    assert notes(progress) == [
        f"step-{2 * EVERY} is damaged (weights.safetensors does not match its sha256); "
        "trying the one before it",
        f"continues from step {EVERY} of {STEPS}",
    ]


def test_sigterm_saves_and_ends_with_the_code_for_continue(tmp_path):
    make_dataset(tmp_path / "data")
    process = start(tmp_path)
    while steps_on_disk(tmp_path) < 3:
        assert process.poll() is None, "the training ended before it could be stopped"
        time.sleep(0.002)
    process.terminate()
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "out" / "state" / f"step-{steps_on_disk(tmp_path)}").is_dir()
