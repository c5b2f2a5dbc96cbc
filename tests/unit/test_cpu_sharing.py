"""A training among other programs: when its threads sleep instead of spinning, and that they do."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from manyeyes.training import cpu_sharing
from manyeyes.training.cpu_sharing import (
    Cores,
    Turns,
    Use,
    Watcher,
    cores_filled,
    cores_of_others,
    is_crowded,
)

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, time
from pathlib import Path
import torch
from manyeyes.training.cpu_sharing import SpareTeam, parallel_of_torch

def tasks():
    return {task.name for task in Path("/proc/self/task").iterdir()}

def state(task):
    return Path("/proc/self/task", task, "stat").read_text().rpartition(") ")[2][0]

torch.set_num_threads(2)
before = tasks()
numbers = torch.ones(2**18)
(other,) = tasks() - before  # of the team of two

def sleeps():
    numbers.add_(1.0)
    time.sleep(0.005)
    return state(other) == "S"

alone = sum(sleeps() for _ in range(20))
spare = SpareTeam(parallel_of_torch(), len(os.sched_getaffinity(0)))
numbers.add_(1.0)
while state(other) != "S":  # it may wait for a core, to do its part and then to fall asleep
    time.sleep(0.005)
spare.end()
print(alone, sum(sleeps() for _ in range(20)), torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("others", "team", "cores", "crowded"),
    [
        (0.0, 2, 2, False),
        (0.2, 2, 2, False),  # what always runs on a machine
        (0.5, 2, 2, True),
        (1.0, 2, 2, True),
        (1.0, 1, 2, False),  # the other core is free
        (30.0, 4, 64, False),
        (61.0, 4, 64, True),
        (0.0, 4, 2, True),  # more threads than cores
    ],
)
def test_a_team_makes_room_where_all_together_want_more_cores_than_there_are(
    others, team, cores, crowded
):
    assert is_crowded(others, team, cores) is crowded


def test_others_are_all_but_this_process():
    before, now = Use(10.0, 100.0, 50.0), Use(12.0, 104.0, 51.0)
    assert cores_of_others(before, now) == pytest.approx(1.5)
    assert cores_of_others(before, before) == 0.0
    assert cores_of_others(before, Use(11.0, 100.5, 51.0)) == 0.0  # clocks tick apart


def test_the_team_sleeps_while_there_are_others_and_no_longer(monkeypatch):
    uses = iter([Use(0, 0, 0), Use(1, 2, 2), Use(2, 4, 3), Use(3, 6, 4), Use(4, 8, 6)])
    sizes = []
    watcher = Watcher(sizes.append, team=2, cores=2, look=lambda: next(uses))
    shares = []
    for _ in range(4):
        watcher.update()
        shares.append(watcher.shares)
    assert shares == [False, True, True, False]
    assert sizes == [2]


def test_a_small_team_among_many_cores_needs_a_larger_spare_one():
    uses = iter([Use(0, 0, 0), Use(1, 66, 2)])
    sizes = []
    watcher = Watcher(sizes.append, team=2, cores=64, look=lambda: next(uses))
    watcher.update()
    watcher.end()
    assert sizes == [64]
    assert not watcher.shares


def test_looking_counts_this_process_among_all():
    before = cpu_sharing.look(os.sched_getaffinity(0))
    sum(range(10**6))
    now = cpu_sharing.look(os.sched_getaffinity(0))
    assert now.at >= before.at
    assert now.own > before.own
    assert now.everybody >= before.everybody


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
def test_a_spare_team_has_threads_sleep_that_would_spin_for_ever():
    """``INFINITE``: without the spare team no thread ever sleeps, however busy the machine is.

    The program ends only if the other thread falls asleep.
    """
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "GOMP_SPINCOUNT": "INFINITE"}
    variables.pop("OMP_NUM_THREADS", None)
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=variables, check=True, capture_output=True, text=True
    ).stdout
    alone, after, threads = map(int, said.split())
    assert threads == 2
    if len(os.sched_getaffinity(0)) > 1:  # on one core a team of two hardly spins anyway
        assert (alone, after) == (0, 0)


@pytest.mark.parametrize("name", cpu_sharing.OWN_WISH)
def test_who_says_how_threads_wait_is_heard(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not cpu_sharing._is_ours_to_decide(2)


@pytest.mark.parametrize(("team", "ours"), [(1, False), (2, True)])
def test_a_single_thread_waits_for_nobody(monkeypatch, team, ours):
    for name in cpu_sharing.OWN_WISH:
        monkeypatch.delenv(name, raising=False)
    assert cpu_sharing._is_ours_to_decide(team) is (ours and sys.platform == "linux")


def test_while_it_is_open_a_thread_looks_and_a_team_is_made_and_ended(monkeypatch):
    import torch

    made = threading.Event()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(cpu_sharing, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(cpu_sharing, "parallel_of_torch", lambda: lambda _size: made.set())
    monkeypatch.setattr(cpu_sharing, "is_crowded", lambda *_: True)
    for name in cpu_sharing.OWN_WISH:
        monkeypatch.delenv(name, raising=False)
    with cpu_sharing.cores_shared():
        assert made.wait(600)
    assert not {t.name for t in threading.enumerate()} & {"cpu sharing", "spare team"}
    made.clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with cpu_sharing.cores_shared():
        assert "cpu sharing" not in {t.name for t in threading.enumerate()}


@pytest.mark.parametrize(
    ("ran", "waited", "team", "filled"),
    [
        (1.0, 0.0, 2, 2.0),  # never had to wait
        (1.0, 1.0, 2, 1.0),  # beside as many others
        (1.0, 3.0, 2, 0.5),
        (4.0, 12.0, 16, 4.0),
        (0.0, 0.0, 2, 2.0),  # had nothing to do
    ],
)
def test_a_team_fills_what_its_threads_got_when_they_were_ready(ran, waited, team, filled):
    assert cores_filled(Turns(5.0, 7.0), Turns(5.0 + ran, 7.0 + waited), team) == filled


@pytest.fixture
def cores(monkeypatch):
    """Two cores; which of them the threads are kept to is written down, not done."""
    kept = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, to: kept.append(tuple(to)))
    monkeypatch.setattr(cpu_sharing, "_threads", lambda: ["1"])
    return kept


def moves(monkeypatch, place, waited):
    """Let a team of two compute a second a look, having waited so long each time."""
    so_far = Turns(0.0, 0.0)
    for seconds in waited:
        monkeypatch.setattr(cpu_sharing, "turns", lambda now=so_far: now)
        place.move_together(2)
        so_far = Turns(so_far.ran + 1.0, so_far.waited + seconds)
    monkeypatch.setattr(cpu_sharing, "turns", lambda: so_far)
    place.move_together(2)


def test_a_team_beside_many_moves_to_one_core_and_back(monkeypatch, cores):
    place = Cores()
    moves(monkeypatch, place, [3.0, 3.0])
    assert cores == [(0,)]
    place.spread()
    assert cores == [(0,), (0, 1)]


def test_a_team_beside_as_many_others_stays_on_its_cores(monkeypatch, cores):
    moves(monkeypatch, Cores(), [1.0, 1.0, 0.8, 0.9])
    assert cores == []


def test_a_team_spreads_when_others_have_left(monkeypatch, cores):
    moves(monkeypatch, Cores(), [3.0, 3.0, 0.0, 0.0])
    assert cores == [(0,), (0, 1)]


def test_without_a_count_of_turns_a_team_stays(monkeypatch, cores):
    def refused():
        raise OSError

    monkeypatch.setattr(cpu_sharing, "turns", refused)
    Cores().move_together(2)
    assert cores == []


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps the count")
def test_turns_are_those_of_this_process():
    before = cpu_sharing.turns()
    sum(range(10**6))
    assert cpu_sharing.turns().ran > before.ran
