"""Skin 2: dvc.yaml says what the step table says, and the real DVC restores our results."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pipeline_kit import LONG
from ruamel.yaml import YAML

from manyeyes.artifact.manifest import Header, write_manifest
from manyeyes.cli import main
from manyeyes.cli.dvc import pipeline_text
from manyeyes.config.recipe import load_recipe
from manyeyes.steps import PACKAGE, STEPS
from manyeyes.store import Store, dvc_owns_outputs

ROOT = PACKAGE.parent
RECIPE = "recipes/tiny/eagle-x5.yaml"
EXPERTS = list(load_recipe(ROOT / RECIPE).prealign.experts)


def test_the_shipped_file_is_what_the_command_writes():
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert text == pipeline_text(load_recipe(ROOT / RECIPE), Path(RECIPE)), (
        f"run: manyeyes dvc {RECIPE}"
    )


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_the_file_of_any_recipe_says_what_the_table_says(recipe):
    """Commands, inputs, results, and no other settings; a recipe may pre-align no experts."""
    loaded = load_recipe(recipe)
    stages = YAML(typ="safe").load(pipeline_text(loaded, recipe.relative_to(ROOT)))["stages"]
    experts, root = list(loaded.prealign.experts), f"artifacts/{loaded.name}"
    steps = [step for step in STEPS if experts or not step.per_expert]
    assert list(stages) == ["keys", *(step.name for step in steps)]
    for step in steps:
        item = "/${item.expert}" if step.per_expert else ""
        words = ["manyeyes", step.name, str(recipe.relative_to(ROOT))]
        words += ["--expert", "${item.expert}"] if step.per_expert else []
        folders = []
        for needed in step.inputs:
            place = f"{root}/{needed.source}"
            given = [f"{place}/{name}" for name in experts] if needed.many else [place]
            words += [f"--{needed.role}", *given] if given else []
            folders += given
        words += ["--keep-candidate"] if step.name == "register" else []
        out = f"{root}/{step.name}{item}"
        stage = stages[step.name]
        assert stage["cmd"].split() == [*words, "--out", out]
        key = f"{root}/keys/{step.name}{item.replace('/', '-')}.json"
        assert stage["deps"] == [*folders, key]
        assert stage["outs"] == [out]
        assert stage.get("matrix") == ({"expert": experts} if step.per_expert else None)
        assert set(stage) <= {"cmd", "deps", "outs", "matrix"}


def test_the_file_of_another_is_not_replaced(tmp_path, capsys):
    file = tmp_path / "dvc.yaml"
    file.write_text("stages: {}\n")
    assert main(["dvc", str(ROOT / RECIPE), "--out", str(file)]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            f"{file} is not a file that manyeyes dvc wrote: remove it, or give another one with --out."
        )
    )
    assert file.read_text() == "stages: {}\n"
    file.unlink()
    for _ in range(2):  # its own file it writes again
        assert main(["dvc", str(ROOT / RECIPE), "--out", str(file)]) == 0


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
    """A repository with this one's DVC files and recipe."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", RECIPE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    shutil.copyfile(LONG, folder / RECIPE)  # what it says of each encoder, the tests edit by hand
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    return folder


FAKE = """#!/bin/sh
if [ "$1" = keys ]; then exec PYTHON -m manyeyes "$@"; fi
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


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A command line that notes its calls."""
    path = tmp_path / "bin/manyeyes"
    path.parent.mkdir()
    path.write_text(FAKE.replace("PYTHON", sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return path


def test_a_change_of_the_base_runs_the_stage_that_sees_it(clone, command):
    base = (clone / RECIPE).with_name("base.yaml")
    shutil.copyfile(ROOT / RECIPE, base)
    (clone / RECIPE).write_text("extends: base\nname: eagle-x5-tiny\n")
    dvc(clone, "repro", "--quiet", path=command.parent)
    first = (clone / "calls.txt").read_text().split()
    base.write_text(base.read_text().replace("  steps: 380", "  steps: 381"))
    dvc(clone, "repro", "--quiet", path=command.parent)
    assert (clone / "calls.txt").read_text().split()[len(first) :] == ["sft"]


def test_one_experts_rate_runs_that_expert_and_what_follows(clone, command):
    dvc(clone, "repro", "--quiet", path=command.parent)
    assert dvc(clone, "repro", path=command.parent).count("Running stage") == 1  # the keys
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


def test_a_named_pipe_and_half_a_character_are_no_file_to_write(tmp_path, capsys):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for out in (pipe, tmp_path / "\ud800.yaml"):
        assert main(["dvc", str(ROOT / RECIPE), "--out", str(out)]) == 2
        assert "give another file with --out." in capsys.readouterr().err


@pytest.mark.parametrize("decision", ["refused", "undecided", "promoted"])
@pytest.mark.parametrize("keep", [False, True])
def test_a_candidate_is_a_result_of_register_where_that_is_asked_for(
    decision, keep, tmp_path, monkeypatch, capsys
):
    details = {"decision": decision, "passed": decision == "promoted", "reasons": ["so it is"]}
    made = SimpleNamespace(details=details, kind="registration", digest="d" * 64)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path))
    monkeypatch.setattr("manyeyes.pipeline.runner.run_stage", lambda *_, **__: made)
    monkeypatch.setattr("manyeyes.cli.stage._state", lambda _: "done")
    words = ["register", str(ROOT / "recipes/tiny/eagle-x5.yaml"), "--checkpoint", "c", "--report"]
    words += ["r", "--out", "o", *(["--keep-candidate"] if keep else [])]
    assert main(words) == (0 if keep or decision == "promoted" else 3)
    told = {"refused": "says no, not champion", "undecided": "is undecided, not champion",
            "promoted": "says yes"}  # fmt: skip
    assert capsys.readouterr().out == (
        f"register: done, registration dddddddddddd in o\nThe gate {told[decision]}: so it is.\n"
    )
