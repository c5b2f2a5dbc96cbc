"""What a real ``dvc repro`` made, ``manyeyes run`` takes from the content store of the same clone."""

import shutil
import subprocess
import sys

import pytest
from pipeline_kit import ROOT, environment, small_recipe, succeed_json
from ruamel.yaml import YAML

from benchmarks.single_experts import alone
from manyeyes.artifact import read_manifest
from manyeyes.recipe import load_recipe, recipe_yaml
from manyeyes.steps import STEPS

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("dvc")]
RECIPE = "recipes/tiny/eagle-x5.yaml"
ARTIFACTS = "artifacts/eagle-x5-tiny"
EXPERT = "clip"


def for_one_expert(stages):
    """Leave one expert in the stages of ``dvc.yaml``: every expert is another minute."""
    others = [f"{ARTIFACTS}/prealign/{name}" for name in stages["prealign"]["matrix"]["expert"]]
    others.remove(f"{ARTIFACTS}/prealign/{EXPERT}")
    stages["prealign"]["matrix"]["expert"] = [EXPERT]
    for stage in stages.values():
        stage["cmd"] = " ".join(word for word in stage["cmd"].split() if word not in others)
        stage["deps"] = [path for path in stage["deps"] if path not in others]


@pytest.fixture
def clone(tmp_path):
    """A repository with this one's DVC files, a small recipe, and a file for every dependency."""
    folder = tmp_path / "clone"
    for name in (".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    yaml = YAML()
    document = yaml.load((ROOT / "dvc.yaml").read_text())
    for_one_expert(document["stages"])
    yaml.dump(document, folder / "dvc.yaml")
    for path in {f"manyeyes/{path}" for step in STEPS for path in step.code}:
        file = folder / (path if path.endswith(".py") else f"{path}/code.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    (folder / RECIPE).parent.mkdir(parents=True)
    recipe = alone(load_recipe(small_recipe(tmp_path, sft_steps=2)), EXPERT)
    (folder / RECIPE).write_text(recipe_yaml(recipe), encoding="utf-8")
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
    assert printed.count("Running stage") == len(STEPS)
    answers = succeed_json(clone, "explain", RECIPE)
    assert [answer["stage"] for answer in answers if not answer["cached"]] == []
    result = succeed_json(clone, "run", RECIPE, "--out", "out")
    assert result["nothing_to_do"] is True
    for step in STEPS:
        name = f"{step.name}/{EXPERT}" if step.per_expert else step.name
        assert read_manifest(clone / "out" / name) == read_manifest(clone / ARTIFACTS / name)
