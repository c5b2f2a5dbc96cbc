"""What a real ``dvc repro`` made, ``manyeyes run`` takes from the content store of the same clone."""

import shutil
import subprocess
import sys

import pytest
from pipeline_kit import ROOT, environment, small_recipe, succeed, succeed_json

from benchmarks.single_experts import alone
from manyeyes.artifact.manifest import read_manifest
from manyeyes.config.recipe import load_recipe, recipe_yaml
from manyeyes.steps import STEPS

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("dvc")]
RECIPE = "recipes/tiny/eagle-x5.yaml"
ARTIFACTS = "artifacts/eagle-x5-tiny-clip"
EXPERT = "clip"


@pytest.fixture
def clone(tmp_path):
    """A repository with this one's DVC files and a small recipe of one expert."""
    folder = tmp_path / "clone"
    for name in (".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    (folder / RECIPE).parent.mkdir(parents=True)
    recipe = alone(load_recipe(small_recipe(tmp_path, sft_steps=2)), EXPERT)
    (folder / RECIPE).write_text(recipe_yaml(recipe), encoding="utf-8")
    succeed(folder, "dvc", RECIPE)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    return folder


def repro(clone, tools):
    """Run the real DVC with the real command line and return what it printed."""
    tools.mkdir()
    command = tools / "manyeyes"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m manyeyes "$@"\n')
    command.chmod(0o755)
    variables = environment(clone)
    variables |= {"PATH": f"{tools}:{variables['PATH']}", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=clone,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_after_dvc_repro_takes_every_stage_from_the_store(clone, tmp_path):
    printed = repro(clone, tmp_path / "bin")
    assert printed.count("Running stage") == len(STEPS) + 1  # and the keys
    answers = succeed_json(clone, "explain", RECIPE)
    assert [answer["stage"] for answer in answers if not answer["cached"]] == []
    result = succeed_json(clone, "run", RECIPE, "--out", "out")
    assert result["nothing_to_do"] is True
    for step in STEPS:
        name = f"{step.name}/{EXPERT}" if step.per_expert else step.name
        assert read_manifest(clone / "out" / name) == read_manifest(clone / ARTIFACTS / name)
