"""A state is whole or it is not there; a damaged one is skipped, a foreign one not continued."""

import os
import shutil

import pytest
import torch

from manyeyes.errors import ManyeyesError
from manyeyes.training.checkpoint import State, Totals, clear_state, load_state, save_state


class Notes:
    """Collects what a stage says."""

    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def state(step):
    weights = {"projector.weight": torch.full((2, 3), float(step))}
    moments = {
        "exp_avg/projector.weight": torch.ones(2, 3),
        "step/projector.weight": torch.tensor(3.0),
    }
    return State(step, Totals(samples=8 * step, seconds=0.1), weights, moments)


def names(out):
    return sorted(os.listdir(out / "state"))


def test_a_state_comes_back_as_it_was(tmp_path):
    save_state(tmp_path, state(4), "same")
    loaded = load_state(tmp_path, "same", Notes())
    assert (loaded.step, loaded.totals) == (4, Totals(samples=32, seconds=0.1))
    assert torch.equal(loaded.weights["projector.weight"], torch.full((2, 3), 4.0))
    assert loaded.optimizer["step/projector.weight"].item() == 3.0
    assert loaded.optimizer["step/projector.weight"].shape == ()


def test_the_two_newest_are_kept_and_the_newest_wins(tmp_path):
    for step in (5, 10, 15, 100):
        save_state(tmp_path, state(step), "same")
    assert names(tmp_path) == ["step-100", "step-15"]
    assert load_state(tmp_path, "same", Notes()).step == 100


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = [
    ("weights.safetensors", cut, "weights.safetensors does not match its sha256"),
    ("weights.safetensors", flip, "weights.safetensors does not match its sha256"),
    ("optimizer.safetensors", lambda path: path.unlink(), "optimizer.safetensors is missing"),
    ("state.json", lambda path: path.unlink(), "state.json is missing"),
    ("state.json", cut, "state.json is not a record"),
    ("state.json", lambda path: path.write_text(""), "state.json is not a record"),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGE)
def test_a_damaged_state_is_skipped_with_a_note(tmp_path, name, damage, reason):
    save_state(tmp_path, state(4), "same")
    save_state(tmp_path, state(8), "same")
    damage(tmp_path / "state" / "step-8" / name)
    notes = Notes()
    assert load_state(tmp_path, "same", notes).step == 4
    assert notes.texts == [f"step-8 is damaged ({reason}); trying the one before it"]


def test_a_half_written_state_is_not_seen_and_does_not_disturb(tmp_path):
    save_state(tmp_path, state(4), "same")
    shutil.copytree(tmp_path / "state" / "step-4", tmp_path / "state" / "step-8.tmp")
    notes = Notes()
    assert load_state(tmp_path, "same", notes).step == 4
    assert notes.texts == []
    assert names(tmp_path) == ["step-4"]
    save_state(tmp_path, state(8), "same")
    assert names(tmp_path) == ["step-4", "step-8"]


def test_a_state_of_other_settings_is_not_continued(tmp_path):
    save_state(tmp_path, state(4), "other")
    notes = Notes()
    assert load_state(tmp_path, "same", notes) is None
    assert notes.texts == ["step-4 belongs to other settings or inputs; it is not continued"]


def test_states_of_another_run_do_not_push_out_new_ones(tmp_path):
    for step in (50, 60):
        save_state(tmp_path, state(step), "other")
    assert load_state(tmp_path, "same", Notes()) is None
    save_state(tmp_path, state(4), "same")
    assert names(tmp_path) == ["step-4"]


def test_without_a_state_there_is_none(tmp_path):
    assert load_state(tmp_path, "same", Notes()) is None
    clear_state(tmp_path)


def test_clear_removes_every_state(tmp_path):
    save_state(tmp_path, state(4), "same")
    clear_state(tmp_path)
    assert not (tmp_path / "state").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(ManyeyesError) as caught:
        save_state(tmp_path, state(4), "same")
    assert str(caught.value).startswith(
        f"{tmp_path / 'state'}: the state of step 4 cannot be written ("
    )
    assert str(caught.value).endswith("); make the folder writable and run the same command again.")
