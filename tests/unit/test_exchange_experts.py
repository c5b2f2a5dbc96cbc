"""Mixtral's experts under the names they are published with, adapters, and LLaVA-HR's first stage."""

import json
from pathlib import Path

import pytest
import torch
from exchange_kit import published, recipe_of, write_recipe
from safetensors.torch import save_file
from test_exchange import model_of
from test_llm_families import write

from manyeyes.cli import main
from manyeyes.errors import UserError
from manyeyes.model.transformer import load_language_model
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.model.weights.exchange.projector import load_joint
from manyeyes.model.weights.exchange.source import open_source
from manyeyes.model.weights.loading import find_safetensors

ROOT = Path(__file__).parents[2]
EXPERTS = 4


def run(*words):
    return main([str(word) for word in words])


def as_published(state):
    """Name a Mixtral's tensors as its files do: each expert's w1, w2, w3 alone."""
    found = {}
    for key, tensor in state.items():
        if not key.startswith("model.layers.") or ".mlp." not in key:
            found[key] = tensor.clone()
            continue
        front, _, tail = key.partition(".mlp.")
        block = f"{front}.block_sparse_moe"
        if tail == "gate.weight":
            found[f"{block}.gate.weight"] = tensor.clone()
        for index in range(EXPERTS) if tail != "gate.weight" else ():
            if tail == "experts.down_proj":
                found[f"{block}.experts.{index}.w2.weight"] = tensor[index].clone()
            else:
                first, third = tensor[index].chunk(2)
                found[f"{block}.experts.{index}.w1.weight"] = first.clone()
                found[f"{block}.experts.{index}.w3.weight"] = third.clone()
    return found


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """Return a Mixtral's folder under the published names, in two shards, and its state."""
    folder = tmp_path_factory.mktemp("mixtral")
    write(folder, "mixtral")
    state = load_language_model(str(folder)).state_dict()
    (folder / "model.safetensors").unlink()
    tensors = as_published(state)
    names = sorted(tensors)
    weight_map = {}
    for number, keys in (("1", names[::2]), ("2", names[1::2])):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(keys, file))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder, state, tensors


def test_a_folder_under_the_published_names_is_loaded_as_it_is(mixtral):
    folder, state, tensors = mixtral
    assert "model.layers.1.block_sparse_moe.experts.3.w1.weight" in tensors
    loaded = load_language_model(str(folder)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_the_experts_of_a_language_model_are_joined(mixtral, tmp_path, capsys):
    folder, state, tensors = mixtral
    capsys.readouterr()
    assert run("import-weights", folder, "--as", "llm", "--out", tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["used"].keys() == tensors.keys()
    assert (report["unused"], report["missing"], report["unexpected"]) == ({}, [], [])
    key = "model.layers.0.block_sparse_moe.experts.2.w3.weight"
    assert report["used"][key] == ["model.layers.0.mlp.experts.gate_up_proj"]
    loaded = load_language_model(str(tmp_path / "out")).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_released_system_around_a_mixtral_becomes_one_of_ours(mixtral, tmp_path, capsys):
    folder, state, _ = mixtral
    recipe = recipe_of("mgm", str(folder), ROOT)
    model = VisionLanguageModel.from_recipe(recipe.model, seed=5)
    tensors = published("mgm", model.state_dict())
    language = {key: value for key, value in tensors.items() if key in state}
    others = {key: value for key, value in tensors.items() if key not in state}
    released = tmp_path / "released"
    released.mkdir()
    save_file({**others, **as_published(language)}, released / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (released / "config.json").write_text(json.dumps({**config, "model_type": "mgm_mixtral"}))
    path = write_recipe(recipe, tmp_path / "r.yaml")
    capsys.readouterr()
    assert run("import-weights", released, "--recipe", path, "--out", tmp_path / "ours") == 0
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


FAULTS = {
    "a lost expert": (
        lambda tensors: tensors.pop("model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        "'model.layers.1.mlp.experts.down_proj' is missing.",
    ),
    "one expert too many": (
        lambda tensors: tensors.update(
            {"model.layers.1.block_sparse_moe.experts.4.w2.weight": torch.zeros(32, 48)}
        ),
        "nobody knows 'model.layers.1.block_sparse_moe.experts.4.w2.weight'.",
    ),
    "another width": (
        lambda tensors: tensors.update(
            {"model.layers.1.block_sparse_moe.experts.0.w1.weight": torch.zeros(47, 32)}
        ),
        "a shape differs, model.layers.1.block_sparse_moe.experts.0.w1.weight: (47, 32) instead "
        "of (48, 32).",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_experts_that_do_not_make_a_whole_are_refused(kind, mixtral, tmp_path, capsys):
    folder, _, tensors = mixtral
    change, problem = FAULTS[kind]
    broken = dict(tensors)
    change(broken)
    place = tmp_path / "place"
    place.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (place / name).write_bytes((folder / name).read_bytes())
    save_file(broken, place / "model.safetensors")
    capsys.readouterr()
    assert run("import-weights", place, "--as", "llm", "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        f"The weights '{place}' are not those of a language model of kind mixtral: {problem}\n"
    )
    assert not (tmp_path / "out").exists()


ADAPTER = (
    "{place} holds a LoRA adapter ({name}) and not the weights it belongs to: merge it into them "
    "first (with peft, PeftModel.from_pretrained(model, folder).merge_and_unload() and "
    "save_pretrained), and name the merged folder."
)


def adapter_folder(folder, name):
    folder.mkdir()
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    if name.endswith(".safetensors"):
        save_file({key: torch.zeros(2, 4)}, folder / name)
    else:
        torch.save({key: torch.zeros(2, 4)}, folder / name)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "lmsys/vicuna"}')
    return folder


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_alone_is_refused_with_what_to_do(name, tmp_path, capsys):
    place = adapter_folder(tmp_path / "lora", name)
    said = ADAPTER.format(place=place, name=name)
    for given in (place, place / name):
        assert run("import-weights", given, "--as", "llm", "--out", tmp_path / "out") == 2
        assert capsys.readouterr().err == ADAPTER.format(place=given, name=name) + "\n"
    for load in (load_language_model, find_safetensors):
        with pytest.raises(UserError) as caught:
            load(str(place))
        assert str(caught.value) == said
    assert not (tmp_path / "out").exists()


def test_an_adapter_beside_whole_weights_is_left_where_it_is(tmp_path):
    place = adapter_folder(tmp_path / "merged", "adapter_model.safetensors")
    save_file({"a": torch.zeros(1)}, place / "model.safetensors")
    assert open_source(str(place)).shapes == {"a": (1,)}
    assert find_safetensors(str(place)) == [place / "model.safetensors"]


@pytest.mark.parametrize("fresh", [True, False], ids=["first stage", "second stage"])
def test_llava_hrs_first_stage_has_no_adapters_and_they_stay_new(fresh, mixtral, tmp_path, capsys):
    recipe, model = model_of("llava-hr", mixtral[0], 5)
    names = ("projector.", "fusion.")
    tensors = published(
        "llava-hr", {k: v for k, v in model.state_dict().items() if k.startswith(names)}
    )
    if fresh:
        tensors = {key: v for key, v in tensors.items() if "align_stages_latent" not in key}
        assert sorted(tensors) == [
            *(f"model.mm_projector.{n}.{p}" for n in "02" for p in ("bias", "weight")),
            *(
                f"model.vision_tower.align_stages.0.{side}_proj.{p}"
                for side in ("fast", "slow")
                for p in ("bias", "weight")
            ),
        ]
    torch.save(tensors, tmp_path / "mm_projector.bin")
    path = write_recipe(recipe, tmp_path / "r.yaml")
    words = ("import-weights", tmp_path / "mm_projector.bin", "--recipe", path, "--json")
    capsys.readouterr()
    assert run(*words, "--out", tmp_path / "in") == 0
    report = json.loads(capsys.readouterr().out)
    anew = {"fusion.adapters": "new, as the authors' second stage begins"}
    assert report["elsewhere"] == (anew if fresh else {})
    other = model_of("llava-hr", mixtral[0], 6)[1]
    before = {key: value.clone() for key, value in other.state_dict().items()}
    load_joint(other, str(tmp_path / "in"))
    after = other.state_dict()
    for key, value in model.state_dict().items():
        if key.startswith(names):
            kept = fresh and key.startswith("fusion.adapters.")
            assert torch.equal(after[key], before[key] if kept else value), key
