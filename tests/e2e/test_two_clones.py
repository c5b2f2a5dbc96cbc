"""Where a clone lies changes nothing: the same recipe in two folders gives one digest per stage."""

import os
import shutil
import subprocess
import sys

import golden_kit
import pytest
from pipeline_kit import ROOT

from manyeyes.artifact.manifest import read_manifest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("clones")]
STAGES = golden_kit.STAGES[:-1]
RUN = "import golden_kit, pathlib; golden_kit.pipeline(pathlib.Path({!r}), last={!r})"


def results_of_clone(place):
    """Copy the source and the recipes, run the pipeline there; stage to (key, digest)."""
    for name in ("manyeyes", "benchmarks", "components", "pipelines", "recipes", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, place / "clone" / name, symlinks=True, ignore=ignored)
    work = place / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(str(work), STAGES[-1])],
        cwd=work,
        env={
            **os.environ,
            "PYTHONPATH": f"{place / 'clone'}:{place / 'clone/tests'}",
            "MANYEYES_HOME": str(place / "home"),
            "MLFLOW_TRACKING_URI": "",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifests = {stage: read_manifest(work / stage) for stage in STAGES}
    return {stage: (found.fingerprint, found.digest) for stage, found in manifests.items()}


def test_two_clones_in_two_folders_give_one_key_and_one_digest_per_stage(tmp_path):
    first = results_of_clone(tmp_path / "one")
    second = results_of_clone(tmp_path / "another" / "folder, deeper")
    assert first == second
