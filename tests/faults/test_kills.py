"""Thirty times kill -9, over the stages and in between: the same bytes as a run left in peace.

The moments are drawn with a seed from the places that ``kill_kit.PLACES`` names; the kit's program
brings all of them about, and each test looks at one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kill_kit import draw

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("kills")]

KIT = Path(__file__).parents[1] / "kill_kit.py"
SEED, NUM = 5, 30
MOMENTS = [str(moment) for moment in draw(SEED, NUM)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the kit's program found."""
    folder = tmp_path_factory.mktemp("kills")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(KIT.parents[1]), str(KIT.parent)])
    command = [sys.executable, str(KIT), str(folder), str(SEED), str(NUM)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return json.loads((folder / "kills.json").read_text())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_pipeline_ends_as_if_nobody_had_killed_it(found, moment):
    """Equal digests, losses and files of every stage; nothing lies around."""
    assert found["rounds"][found["deaths"][moment]["round"]] == found["calm"]


def test_every_moment_was_a_kill_and_no_stage_leaves_anything_behind(found):
    assert sorted(found["deaths"]) == sorted(MOMENTS)
    assert found["calm"]["unfinished"] == []
    assert [len(losses) for losses in found["calm"]["losses"]] == [10, 10, 10]
