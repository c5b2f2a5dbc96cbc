"""Skin 2: dvc.yaml says what the step table says, and the real DVC restores our results."""

import os
import shutil
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from manyeyes.artifact import Header, write_manifest
from manyeyes.recipe import load_recipe
from manyeyes.steps import PACKAGE, STEPS
from manyeyes.store import Store, dvc_owns_outputs

ROOT = PACKAGE.parent
RECIPE = "recipes/tiny/eagle-x5.yaml"
ARTIFACTS = "artifacts/eagle-x5-tiny"
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
EXPERTS = list(load_recipe(ROOT / RECIPE).prealign.experts)


def result(stage, expert="{expert}"):
    return f"{ARTIFACTS}/{stage}/{expert}" if stage == "prealign" else f"{ARTIFACTS}/{stage}"


def inputs(step):
    """Role to the folders a stage reads, in the order of the table."""
    return {
        needed.role: [result(needed.source, expert) for expert in EXPERTS]
        if needed.many
        else [result(needed.source)]
        for needed in step.inputs
    }


def filled(value):
    return str(value).replace("${item.expert}", "{expert}")


def test_the_stages_and_their_order_are_those_of_the_table():
    assert list(STAGES) == [step.name for step in STEPS]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_command_is_the_line_of_the_command_line(step):
    words = ["manyeyes", step.name, RECIPE]
    words += ["--expert", "{expert}"] if step.per_expert else []
    for role, folders in inputs(step).items():
        words += [f"--{role}", *folders]
    words += ["--out", result(step.name)]
    assert filled(STAGES[step.name]["cmd"]).split() == words


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_stage_depends_on_its_inputs_and_its_code(step):
    folders = [folder for many in inputs(step).values() for folder in many]
    code = [f"manyeyes/{path}" for path in step.code]
    assert sorted(STAGES[step.name]["deps"]) == sorted([*folders, *code])


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_stage_sees_its_slice_of_the_recipe_and_nothing_else(step):
    (params,) = STAGES[step.name]["params"]
    assert list(params) == [RECIPE]
    assert [filled(key) for key in params[RECIPE]] == list(step.slice_keys)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_stage_has_one_result_and_no_other_settings(step):
    stage = STAGES[step.name]
    assert [filled(out) for out in stage["outs"]] == [result(step.name)]
    matrix = {"matrix"} if step.per_expert else set()
    assert set(stage) == {"cmd", "deps", "params", "outs", *matrix}


def test_the_matrix_lists_the_recipes_experts_in_its_order():
    assert STAGES["prealign"]["matrix"] == {"expert": EXPERTS}


def dvc(folder, *arguments, path=None):
    """Run the real command and return what it printed."""
    environment = {
        **os.environ, "DVC_NO_ANALYTICS": "1", "PATH": f"{path or folder}:{os.environ['PATH']}",
    }  # fmt: skip
    environment.pop("DVC_STAGE", None)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, env=environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path):
    """A repository with this one's DVC files, and one file for every path a stage depends on."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", RECIPE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for path in {f"manyeyes/{path}" for step in STEPS for path in step.code}:
        file = folder / (path if path.endswith(".py") else f"{path}/code.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    return folder


FAKE = """#!/bin/sh
# Stands for the command line: notes the call; the result depends on the inputs and, for an
# expert, on its section of the recipe.
echo "$DVC_STAGE" >> calls.txt
for word in "$@"; do
  [ -d "$word" ] && cat "$word/metrics.json" >> content.txt
  [ "$previous" = --expert ] && sed -n "/^    $word:/,/kind: single/p" "$2" >> content.txt
  [ "$previous" = --out ] && out=$word
  previous=$word
done
mkdir -p "$out"
touch content.txt
mv content.txt "$out/metrics.json"
"""


def test_one_experts_rate_runs_that_expert_and_what_follows(clone, tmp_path):
    command = tmp_path / "bin/manyeyes"
    command.parent.mkdir()
    command.write_text(FAKE)
    command.chmod(0o755)
    dvc(clone, "repro", "--quiet", path=command.parent)
    first = (clone / "calls.txt").read_text().split()
    assert sorted(first) == sorted(
        [step.name for step in STEPS if not step.per_expert] + [f"prealign@{x}" for x in EXPERTS]
    )
    before, after = (clone / RECIPE).read_text().split("    sam:\n", 1)
    after = after.replace("learning_rate: ", "learning_rate: 1", 1)
    (clone / RECIPE).write_text(f"{before}    sam:\n{after}")
    dvc(clone, "repro", "--quiet", path=command.parent)
    second = (clone / "calls.txt").read_text().split()[len(first) :]
    assert second == ["prealign@sam", "pretrain", "sft", "eval", "register"]


def test_dvc_tells_the_command_that_it_owns_the_result(monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert not dvc_owns_outputs()
    monkeypatch.setenv("DVC_STAGE", "sft")
    assert dvc_owns_outputs()


def test_a_deleted_result_comes_back_byte_for_byte_with_dvc_pull(clone):
    out = clone / "runs/tiny/sft"
    files = {"weights.safetensors": os.urandom(300_000), "a/é.txt": b"text", "b/empty": b"",
             "README.md": b"card", ".hidden": b"hidden"}  # fmt: skip
    for name, data in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    header = Header(
        kind="checkpoint", stage="sft", name="sft", recipe_slice="s", fingerprint="f" * 64,
        parents={}, code="c", revision="r", libraries={}, seed=1,
    )  # fmt: skip
    manifest = write_manifest(out, header)
    files["manifest.json"] = (out / "manifest.json").read_bytes()
    store = Store(clone / ".manyeyes/store")
    pointer = store.export_pointer(store.put(out, manifest), out)
    shutil.rmtree(out)
    dvc(clone, "pull", str(pointer.relative_to(clone)))
    found = {path.relative_to(out).as_posix(): path.read_bytes()
             for path in out.rglob("*") if path.is_file()}  # fmt: skip
    assert found == files
    written = pointer.read_text()
    pointer.unlink()
    dvc(clone, "add", "--quiet", str(out.relative_to(clone)))
    yaml = YAML(typ="safe")
    assert yaml.load(pointer.read_text()) == yaml.load(written)
