"""What a recipe reads from outside is in the keys by its content, and ``explain`` names changes."""

import json
import shutil

import pytest
from huggingface_hub import constants
from PIL import Image
from pipeline_kit import small_recipe

from manyeyes import steps
from manyeyes.artifact.manifest import read_manifest
from manyeyes.cli import main
from manyeyes.config.recipe import load_recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.errors import UserError
from manyeyes.model.transformer import (
    load_language_model,
    load_language_model_config,
    load_tokenizer,
)
from manyeyes.model.weights.hub import revision_options
from manyeyes.model.weights.loading import find_safetensors
from manyeyes.model.weights.zoo import WEIGHTS
from manyeyes.pipeline import code_lock
from manyeyes.pipeline.explain import check_outside, explain
from manyeyes.pipeline.fingerprint import agreed, fingerprint, fingerprint_text
from manyeyes.pipeline.outside import outside_elsewhere, outside_of, outside_text
from manyeyes.pipeline.runner import run_stage
from manyeyes.runtime.home import home

EXPERT = "clip"
HUB = "openai/clip-vit-large-patch14-336"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder of the test's own, with an empty cache of the hub, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MANYEYES_DATA", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(code_lock, "_locked", code_lock.entries)  # the source may be edited
    return tmp_path


def import_records(folder, *answers):
    """Make data/mine anew of one picture and these answers."""
    shutil.rmtree("data/mine", ignore_errors=True)
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    records = [
        {"id": f"{n}", "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": answer}]}
        for n, answer in enumerate(answers)
    ]  # fmt: skip
    (folder / "mine.json").write_text(json.dumps(records))
    words = ["data", "import", "mine.json", "--images", ".", "--licence", "CC-BY-4.0"]
    assert main([*words, "--out", "data/mine"]) == 0
    return read_manifest(folder / "data/mine").digest


def recipe_with(folder, *, data=None, weights=None, llm=None):
    text = small_recipe(folder).read_text()
    if data:
        start = text.index("\ndata:")
        end = text.index("\nvalidate:")
        text = f"{text[:start]}\ndata:\n  kind: dataset\n  name: {data}\n{text[end:]}"
    text = text.replace("weights: zoo:clip-tiny", f"weights: {weights or 'zoo:clip-tiny'}")
    text = text.replace("weights: zoo:llama-tiny", f"weights: {llm or 'zoo:llama-tiny'}")
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml")


def keys(recipe):
    """Stage to its key, with the same inputs throughout."""
    found = {}
    for step in steps.STEPS:
        for expert in recipe.prealign.experts if step.per_expert else [None]:
            text = slice_json(recipe, step.name, expert)
            sources = outside_of(step.name, text)
            label = f"{step.name}:{expert}" if expert else step.name
            found[label] = fingerprint(step.name, text, {}, outside_text(sources))
    return found


def changed(before, after):
    return [label for label in before if before[label] != after[label]]


def test_a_dataset_imported_anew_is_taken_and_explained(folder):
    first = import_records(folder, "one", "two")
    recipe = recipe_with(folder, data="mine")
    before = keys(recipe)
    text = slice_json(recipe, "prepare")
    old = run_stage("prepare", text, inputs={}, out=folder / "out")
    (home() / "runs/unnamed").rename(home() / "runs" / recipe.name)
    assert explain(recipe)[0].reason.startswith("cached")
    second = import_records(folder, "one", "other")
    assert second != first
    assert changed(before, keys(recipe)) == ["prepare"]
    answer = explain(recipe)[0]
    assert answer.reason == f"will run: data/mine changed ({first[:12]} -> {second[:12]})"
    new = run_stage("prepare", text, inputs={}, out=folder / "out")
    assert new.digest != old.digest


def test_the_same_data_imported_again_are_cached(folder):
    import_records(folder, "one", "two")
    before = keys(recipe_with(folder, data="mine"))
    import_records(folder, "one", "two")
    assert keys(recipe_with(folder, data="mine")) == before


def test_another_folder_for_the_same_data_gives_the_same_key(folder, monkeypatch):
    import_records(folder, "one", "two")
    before = keys(recipe_with(folder, data="mine"))
    shutil.move("data", "elsewhere")
    monkeypatch.setenv("MANYEYES_DATA", str(folder / "elsewhere"))
    assert keys(recipe_with(folder, data="mine")) == before


WHO_READS = [
    ({"weights": "wf"}, "clip-tiny", ["prealign:clip", "pretrain"]),
    (
        {"llm": "wf"},
        "llama-tiny",
        [*(f"prealign:{x}" for x in ("clip", "convnext", "sam", "eva02", "pix2struct")),
         "pretrain", "sft"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "part", "readers"), WHO_READS, ids=["encoder", "llm"])
def test_one_changed_byte_of_weights_changes_who_reads_them(folder, given, part, readers):
    shutil.copytree(WEIGHTS / part, folder / "wf")
    recipe = recipe_with(folder, **given)
    before = keys(recipe)
    path = folder / "wf/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert changed(before, keys(recipe)) == readers


def test_a_card_beside_weights_changes_nothing(folder):
    shutil.copytree(WEIGHTS / "clip-tiny", folder / "wf")
    before = keys(recipe_with(folder, weights="wf"))
    (folder / "wf/README.md").write_text("other words")
    assert keys(recipe_with(folder, weights="wf")) == before


def cache_model(folder, commit):
    """Make the hub's cache hold a model at this commit, as huggingface_hub lays it out."""
    place = folder / "hub" / f"models--{HUB.replace('/', '--')}"
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs/main").write_text(commit)


def test_a_moved_hub_revision_changes_who_reads_it_and_loaders_ask_for_it(folder):
    recipe = recipe_with(folder, weights=HUB)
    cache_model(folder, "1" * 40)
    before = keys(recipe)
    assert revision_options(HUB) == {"revision": "1" * 40}
    cache_model(folder, "2" * 40)
    assert changed(before, keys(recipe)) == ["prealign:clip", "pretrain"]
    assert revision_options(HUB) == {"revision": "2" * 40}


LOADERS = {
    "config": (load_language_model_config, "transformers.AutoConfig.from_pretrained"),
    "language model": (load_language_model, "transformers.AutoModelForCausalLM.from_pretrained"),
    "tokenizer": (load_tokenizer, "transformers.AutoTokenizer.from_pretrained"),
    "weights": (find_safetensors, "transformers.utils.hub.cached_file"),
}


@pytest.mark.parametrize(("load", "of_transformers"), LOADERS.values(), ids=LOADERS)
def test_every_loader_asks_the_hub_for_the_commit_that_is_in_the_key(
    folder, monkeypatch, load, of_transformers
):
    asked = []

    def note(*_arguments, **options):
        asked.append(options.get("revision"))
        raise OSError("enough")

    cache_model(folder, "1" * 40)
    monkeypatch.setattr(of_transformers, note)
    with pytest.raises(UserError):
        load(HUB)
    assert asked == ["1" * 40]


def test_a_hub_model_that_is_not_here_is_a_note_to_explain_and_an_error_to_run(folder):
    recipe = recipe_with(folder, weights=HUB)
    cache_model(folder, "1" * 40)
    before = keys(recipe)
    shutil.rmtree(folder / "hub")
    assert explain(recipe)[0].reason == "will run: it has not run yet"
    text = slice_json(recipe, "prealign", EXPERT)
    assert fingerprint_text("prealign", text, {}).split(".")[2] == "?"
    assert before["prealign:clip"] != fingerprint("prealign", text, {})
    with pytest.raises(UserError) as error:
        check_outside(recipe)
    assert str(error.value) == (
        f"The hub model {HUB} is not here: it is neither a folder nor a model in the Hugging Face "
        "cache, and the hub was not reached. Correct the name, or fetch it with `hf download`, "
        "where the stage shall run."
    )


WRONG = [
    (
        {"weights": "./gone"},
        "There are no weights at ./gone: the path does not exist. Correct the recipe, or bring "
        "them there (manyeyes import-weights SOURCE --out ./gone).",
    ),
    (
        {"llm": "/no/such/folder"},
        "There are no weights at /no/such/folder: the path does not exist. Correct the recipe, or "
        "bring them there (manyeyes import-weights SOURCE --out /no/such/folder).",
    ),
    (
        {"weights": "a/b/c"},
        "There are no weights at a/b/c: the path does not exist. Correct the recipe, or bring "
        "them there (manyeyes import-weights SOURCE --out a/b/c).",
    ),
    (
        {"data": "mine"},
        "There is no dataset 'mine': data/mine does not exist, and the content store has none of "
        "this name. Make it with manyeyes data import, or push it to the store.",
    ),
]


@pytest.mark.parametrize(("given", "expected"), WRONG, ids=lambda case: str(case)[:20])
def test_what_is_not_there_is_an_error_before_any_stage(folder, given, expected):
    recipe = recipe_with(folder, **given)
    for ask in (explain, check_outside):
        with pytest.raises(UserError) as error:
            ask(recipe)
        assert str(error.value) == expected


def test_a_damaged_dataset_is_an_error_before_any_stage(folder):
    import_records(folder, "one", "two")
    recipe = recipe_with(folder, data="mine")
    explain(recipe)
    path = folder / "data/mine/samples.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        explain(recipe)
    assert str(error.value) == (
        "data/mine/samples.parquet does not match the sha256 in the manifest; fetch the artifact "
        "again or run its stage again."
    )


def test_a_cluster_decides_what_its_folders_and_its_hub_hold(folder):
    shutil.copytree(WEIGHTS / "clip-tiny", folder / "wf")
    recipe = recipe_with(folder, weights="wf")
    text = slice_json(recipe, "prealign", EXPERT)
    assert outside_text(outside_elsewhere("prealign", text)) == "?"
    pinned = slice_json(recipe, "prealign", "sam")
    here = outside_text(outside_of("prealign", pinned))
    assert outside_text(outside_elsewhere("prealign", pinned)) == here != "?"


AGREED = [
    (None, "c.s.o.p", "c.s.o.p"),
    ("c.s.o.p", "c.s.o.p", "c.s.o.p"),
    ("c.s.?.p", "c.s.o.p", "c.s.o.p"),
    ("c.s.o.p", "c.s.?.p", "c.s.o.p"),
    ("c.s.?.p", "c.s.?.p", "c.s.?.p"),
    ("c.s.x.p", "c.s.o.p", None),
    ("d.s.?.p", "c.s.o.p", None),
    ("c.s.?.p.q", "c.s.o.p", None),
    ("nonsense", "c.s.o.p", None),
]


@pytest.mark.parametrize(("given", "own", "expected"), AGREED)
def test_two_machines_agree_on_a_fingerprint_or_do_not(given, own, expected):
    assert agreed(given, own) == expected
