"""Kill training with SIGKILL, run the same command again: the same weights, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pause_kit import Pause
from training_kit import make_dataset

pytestmark = pytest.mark.faults

KIT = Path(__file__).parents[1] / "training_kit.py"
STEPS, EVERY = 14, 4


def start(folder, progress=None, pause=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(KIT.parents[1]), str(KIT.parent)])
    if progress:
        environment["MANYEYES_PROGRESS"] = str(progress)
    if pause:
        environment = pause.within(environment)
    command = [sys.executable, str(KIT), str(folder), str(STEPS), str(EVERY)]
    return subprocess.Popen(command, env=environment)


def finish(folder, progress=None):
    process = start(folder, progress)
    assert process.wait() == 0
    return (folder / "final.safetensors").read_bytes()


def curve(folder):
    path = folder / "out" / "measurements" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def kill_at(folder, place, step):
    """Train and kill at a place, at which the training stands still."""
    pause = Pause(folder, place, step)
    process = start(folder, pause=pause)
    pause.wait(process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    pause.go_on()


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
    """Three kills: before any state, behind one, and while one is written."""
    make_dataset(tmp_path / "data")
    state = tmp_path / "out" / "state"
    kill_at(tmp_path, "step", 2)
    assert not state.exists()
    kill_at(tmp_path, "step", EVERY + 2)
    assert [path.name for path in state.iterdir()] == [f"step-{EVERY}"]
    kill_at(tmp_path, "saving", 2 * EVERY)
    assert (state / f"step-{2 * EVERY}.tmp").is_dir()
    progress = tmp_path / "progress.jsonl"
    weights = finish(tmp_path, progress)
    assert notes(progress) == [f"continues from step {EVERY} of {STEPS}"]
    assert weights == whole[0]
    rows = curve(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows] == whole[1]


def test_a_damaged_newest_state_costs_steps_but_not_the_result(tmp_path, whole):
    make_dataset(tmp_path / "data")
    state = tmp_path / "out" / "state"
    newest = state / f"step-{2 * EVERY}"
    kill_at(tmp_path, "saved", 2 * EVERY)
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
    third = Pause(tmp_path, "step", 3)
    process = start(tmp_path, pause=third)
    third.wait(process)
    process.terminate()
    third.go_on()
    assert process.wait() == 75
    assert (tmp_path / "out" / "state" / "step-3").is_dir()
    assert [row["step"] for row in curve(tmp_path)] == [1, 2, 3]
