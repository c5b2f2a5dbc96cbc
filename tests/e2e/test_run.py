"""The whole pipeline as a user runs it, once; the tests look at what it left behind."""

import shutil
import subprocess
import sys

import pytest
from pipeline_kit import environment, small_recipe, succeed_json

from manyeyes.artifact.manifest import open_artifact, read_manifest
from manyeyes.steps import STEPS

EXPERTS = ("clip", "convnext", "sam", "eva02", "pix2struct")
RESULTS = [
    (f"{step.name}/{expert}" if expert else step.name, step.writes)
    for step in STEPS
    for expert in (EXPERTS if step.per_expert else (None,))
]
pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which ``manyeyes run`` has run."""
    place = tmp_path_factory.mktemp("run")
    small_recipe(place)
    answer = succeed_json(place, "run", "recipe.yaml", "--out", "out")
    assert answer["nothing_to_do"] is False
    return place


@pytest.mark.parametrize(("name", "kind"), RESULTS)
def test_every_result_is_a_whole_artifact(folder, name, kind):
    open_artifact(folder / "out" / name, kind)


def test_a_second_run_does_nothing(folder):
    before = read_manifest(folder / "out/sft").fingerprint
    assert succeed_json(folder, "run", "recipe.yaml", "--out", "out")["nothing_to_do"] is True
    assert read_manifest(folder / "out/sft").fingerprint == before


def test_explain_says_that_everything_is_cached(folder):
    answers = succeed_json(folder, "explain", "recipe.yaml")
    assert [answer["cached"] for answer in answers] == [True] * len(RESULTS)


def test_explain_names_the_change_of_one_experts_rate(folder):
    text = (folder / "recipe.yaml").read_text()
    head, tail = text.split("    sam:\n", 1)
    changed = folder / "changed.yaml"
    changed.write_text(
        head + "    sam:\n" + tail.replace("learning_rate: 5.0e-4", "learning_rate: 7.0e-4", 1)
    )
    answers = {
        f"{a['stage']}:{a['expert']}" if a["expert"] else a["stage"]: a
        for a in succeed_json(folder, "explain", "changed.yaml")
    }
    assert [name for name, answer in answers.items() if not answer["cached"]] == [
        "prealign:sam",
        "pretrain",
        "sft",
        "eval",
        "register",
    ]
    assert answers["prealign:sam"]["reason"] == (
        "will run: the recipe changed (section.learning_rate: 0.0005 -> 0.0007)"
    )
    assert answers["pretrain"]["reason"] == "will run: prealign:sam will run first"


def test_frozen_parts_keep_their_bytes_through_the_stages(folder):
    def digest(stage, name):
        return read_manifest(folder / "out" / stage).files[name].sha256

    for expert in EXPERTS:
        aligned = digest(f"prealign/{expert}", f"encoders.{expert}.safetensors")
        assert digest("pretrain", f"encoders.{expert}.safetensors") == aligned
        assert digest("sft", f"encoders.{expert}.safetensors") != aligned
    llms = {digest(f"prealign/{expert}", "llm.safetensors") for expert in EXPERTS}
    assert llms == {digest("pretrain", "llm.safetensors")}
    assert digest("sft", "llm.safetensors") not in llms


def test_the_registry_knows_the_model_and_its_ancestors(folder):
    (model,) = succeed_json(folder, "models")
    assert model["name"] == "eagle-x5-tiny"
    assert set(model["aliases"]) == {"candidate", "champion"}
    assert model["source_digest"] == read_manifest(folder / "out/sft").digest
    lineage = succeed_json(folder, "lineage", "models:/eagle-x5-tiny@champion")
    assert lineage["recipe"] == "eagle-x5-tiny"
    for expert in EXPERTS:
        expected = read_manifest(folder / "out/prealign" / expert).digest
        assert lineage["experts"][expert] == expected
    assert lineage["datasets"]["dataset"] == read_manifest(folder / "out/prepare").digest


def test_dvc_pull_brings_deleted_checkpoints_back_byte_for_byte(folder, tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    dvc = [sys.executable, "-m", "dvc"]
    run = {"cwd": clone, "check": True, "env": environment(folder), "capture_output": True}
    subprocess.run([*dvc, "init", "--no-scm", "-q"], **run)
    subprocess.run([*dvc, "remote", "add", "-d", "store", folder / ".manyeyes/store"], **run)
    for name in ("sft", "prepare"):
        shutil.copy(folder / f"out/{name}.dvc", clone)
        subprocess.run([*dvc, "pull", "-q", f"{name}.dvc"], **run)
        before = sorted(path for path in (folder / "out" / name).rglob("*") if path.is_file())
        assert before
        for path in before:
            back = clone / path.relative_to(folder / "out")
            assert back.read_bytes() == path.read_bytes()


def test_a_single_stage_verb_takes_the_result_from_the_store(folder):
    answer = succeed_json(
        folder,
        "pretrain",
        "recipe.yaml",
        "--dataset",
        "out/prepare",
        "--validation",
        "out/validate",
        "--experts",
        *[f"out/prealign/{expert}" for expert in EXPERTS],
        "--out",
        "elsewhere/pretrain",
    )
    assert answer["state"] == "cached"
    assert answer["digest"] == read_manifest(folder / "out/pretrain").digest


def test_chat_answers_one_question_about_an_image(folder):
    from PIL import Image

    Image.new("RGB", (128, 128), "white").save(folder / "white.png")
    answer = succeed_json(
        folder,
        "chat",
        "out/sft",
        "--image",
        "white.png",
        "--question",
        "How many shapes are there?",
    )
    assert isinstance(answer["answer"], str)


def test_the_report_is_one_file_that_loads_nothing(folder):
    html = (folder / "out/eval/report.html").read_text(encoding="utf-8")
    assert 'src="http' not in html
    assert 'href="http' not in html
    assert html.count("data:image/png;base64,") >= 5
