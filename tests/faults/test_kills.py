"""Thirty times kill -9, over the stages and in between: the same bytes as a run left in peace.

The moments are drawn with a seed from the places that ``kill_kit.PLACES`` names; the kit's program
brings all of them about, and each test looks at one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import kill_ranks_kit
import pytest
from kill_kit import STAGES, draw

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("kills")]

KIT = Path(__file__).parents[1] / "kill_kit.py"
SEED, NUM = 5, 30
MOMENTS = [str(moment) for moment in draw(SEED, NUM)]


def run_kit(folder, kit, *arguments):
    """Run a kit's program and return what it found."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(kit.parents[1]), str(kit.parent)])
    command = [sys.executable, str(kit), str(folder), *map(str, arguments)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return json.loads((folder / "kills.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Thirty deaths of one process."""
    return run_kit(tmp_path_factory.mktemp("kills"), KIT, SEED, NUM)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Some deaths of one of two processes."""
    return run_kit(tmp_path_factory.mktemp("pair"), Path(kill_ranks_kit.__file__))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_pipeline_ends_as_if_nobody_had_killed_it(found, moment):
    """Equal digests, losses and files of every stage; nothing lies around; each has finished."""
    assert found["rounds"][found["deaths"][moment]["round"]] == found["calm"]


def test_every_moment_was_a_kill_and_no_stage_leaves_anything_behind(found):
    assert sorted(found["deaths"]) == sorted(MOMENTS)
    assert found["calm"]["unfinished"] == []
    assert found["calm"]["records"] == [[stage, "FINISHED"] for stage in sorted(STAGES)]
    assert [len(losses) for losses in found["calm"]["losses"]] == [10, 10, 10]


LEFT_ALONE = {
    0: "Followed: The process that leads the training is gone.",
    1: "ManyeyesError: Training lost process 1 of 2: it is gone, or did not answer for 1800 s "
    "(MANYEYES_STALL_SECONDS); the same command continues from the last state.",
}
PAIR = [(rank, f"process-{rank}-{moment.place}-{moment.count}") for rank, moment in
        kill_ranks_kit.MOMENTS]  # fmt: skip


@pytest.mark.parametrize(("rank", "name"), PAIR, ids=[name for _, name in PAIR])
def test_of_two_processes_the_other_does_not_wait_for_the_killed_one(pair, rank, name):
    death = pair["deaths"][name]
    assert (death["code"], death["said"]) == (1, LEFT_ALONE[rank])


def test_two_processes_with_zero_2_end_in_the_same_bits_however_often_one_was_killed(pair):
    """Not only near: a sum of two does not depend on order, and a state holds every bit."""
    assert pair["killed"] == pair["calm"]
