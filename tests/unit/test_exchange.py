"""Published checkpoints in and projectors out: every key accounted for, or nothing written."""

import json
from pathlib import Path

import pytest
import torch
from exchange_kit import KINDS, MODELS, published, recipe_of, write_config, write_recipe
from model_kit import write_llama
from safetensors.torch import load_file, save_file

from manyeyes.cli import main
from manyeyes.errors import UserError
from manyeyes.model.processor import Processor
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.model.weights.exchange.names import ALIGNMENT, SYSTEMS, recognise
from manyeyes.model.weights.exchange.projector import load_joint
from manyeyes.model.weights.exchange.source import open_source

ROOT = Path(__file__).parents[2]
LAYOUTS = {
    "llava": "one",
    "eagle": "shards",
    "mgm": "pickle",
    "cambrian": "one",
    "llava-hr": "pickle",
    "eve": "one",
}
COMPRESSOR = "model.vision_tower_compressor.norm_layer.3.0.weight"
"""One tensor of the layer that trained EVE."""
JOINT = {"eve": ("projector.", "encoders.patches.")}
"""What goes out with a projector, where that is not projector and fusion."""


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder, tie_word_embeddings=False)
    return folder


def model_of(system, llm, seed):
    recipe = recipe_of(system, str(llm), ROOT)
    model = VisionLanguageModel.from_recipe(recipe.model, seed=seed, load=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in model.parameters():  # constructors leave gains at one and biases at zero
            parameter.data.add_(torch.rand(parameter.shape) * 0.1)
    return recipe, model


def write_release(folder, llm, system, tensors, layout):
    """Write a checkpoint as the authors upload it."""
    write_config(folder, llm, KINDS[system])
    if layout == "one":
        save_file(tensors, folder / "model.safetensors")
        return
    names = list(tensors)
    halves = {"1": names[::2], "2": names[1::2]}
    suffix = "bin" if layout == "pickle" else "safetensors"
    stem = "pytorch_model" if layout == "pickle" else "model"
    weight_map = {}
    for number, keys in halves.items():
        file = f"{stem}-{number}.{suffix}"
        part = {key: tensors[key] for key in keys}
        (torch.save if layout == "pickle" else save_file)(part, folder / file)
        weight_map.update(dict.fromkeys(keys, file))
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def run(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("system", MODELS)
def test_a_released_checkpoint_becomes_one_of_ours(system, llm, tmp_path, capsys):
    recipe, model = model_of(system, llm, 5)
    tensors = published(system, model.state_dict())
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    unused = {"model.layers.0.self_attn.rotary_emb.inv_freq": "computed, not stored"}
    if system == "eve":
        tensors[COMPRESSOR] = torch.zeros(4)
        unused[COMPRESSOR] = ALIGNMENT
    if system == "cambrian":  # its towers come from where the recipe says
        towers = {}
        for name in model.experts:
            section = next(each for each in recipe.model.encoders if each.name == name)
            towers[name] = section.model_copy(update={"weights": f"zoo:{name}-tiny"})
        section = recipe.model.model_copy(update={"encoders": tuple(towers.values())})
        recipe = recipe.model_copy(update={"model": section})
    write_release(tmp_path / "released", llm, system, tensors, LAYOUTS[system])
    path = write_recipe(recipe, tmp_path / "r.yaml")
    out = tmp_path / "ours"
    assert (
        run("import-weights", tmp_path / "released", "--recipe", path, "--out", out, "--json") == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["as"] == f"{system}-tiny, named by {system}"
    assert set(report["used"]) | set(report["unused"]) == set(tensors)
    assert report["unused"] == unused
    elsewhere = {"encoders.clip": "zoo:clip-tiny", "encoders.convnext": "zoo:convnext-tiny"}
    assert report["elsewhere"] == (elsewhere if system == "cambrian" else {})
    loaded = VisionLanguageModel.from_pretrained(out).state_dict()
    for key, tensor in model.state_dict().items():
        if not key.startswith("encoders.") or not report["elsewhere"]:
            assert torch.equal(loaded[key], tensor), key
    side = max(expert.spec.image_size for expert in model.experts.values())
    assert Processor.load(out) == model.fusion.processor(side)
    assert json.loads((out / "manifest.json").read_text())["kind"] == "checkpoint"
    assert json.loads((out / "import.json").read_text()) == {
        key: value for key, value in report.items() if key != "out"
    }


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("system", MODELS)
def test_a_projector_goes_out_under_the_authors_names_and_comes_back(
    system, suffix, llm, tmp_path, capsys
):
    from manyeyes.model.weights.exchange.projector import export_projector, system_of

    recipe, model = model_of(system, llm, 5)
    assert system_of(model) == system
    file = tmp_path / f"mm_projector{suffix}"
    export_projector(model, system, file)
    written = torch.load(file, weights_only=True) if suffix == ".bin" else load_file(file)
    parts = JOINT.get(system, ("projector.", "fusion."))
    joint = {k: v for k, v in model.state_dict().items() if k.startswith(parts)}
    expected = published(system, joint)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], value) for key, value in expected.items())

    path = write_recipe(recipe, tmp_path / "r.yaml")
    words = ("import-weights", file, "--as", system, "--recipe", path, "--out", tmp_path / "in")
    assert run(*words) == 0
    assert f"{len(written)} used, 0 not used, 0 missing" in capsys.readouterr().out
    other = model_of(system, llm, 6)[1]
    load_joint(other, str(tmp_path / "in"))
    state = other.state_dict()
    assert all(torch.equal(state[key], value) for key, value in joint.items())


def test_towers_beside_a_projector_are_left_out_with_the_reason(llm, tmp_path, capsys):
    """MGM's mm_projector.bin holds both encoders, too."""
    recipe, model = model_of("mgm", llm, 5)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("llm.")}
    tensors = published("mgm", state)
    torch.save(tensors, tmp_path / "mm_projector.bin")
    path = write_recipe(recipe, tmp_path / "r.yaml")
    words = ("import-weights", tmp_path / "mm_projector.bin", "--recipe", path, "--json")
    assert run(*words, "--out", tmp_path / "in") == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["unused"].values()) == {"not of the projector or the fusion"}
    assert all("vision_tower" in key for key in report["unused"])
    assert len(report["used"]) == 4 + 3 * 4


def test_a_pretrain_stage_starts_from_an_imported_projector(llm, tmp_path, monkeypatch):
    from manyeyes.config.recipe import MlpProjector
    from manyeyes.config.recipe.slices import TrainSlice
    from manyeyes.model.weights.exchange.projector import export_projector
    from manyeyes.pipeline.stages import StageContext
    from manyeyes.pipeline.stages import pretrain as stage

    recipe, model = model_of("mgm", llm, 5)
    export_projector(model, "mgm", tmp_path / "p.bin")
    path = write_recipe(recipe, tmp_path / "r.yaml")
    run("import-weights", tmp_path / "p.bin", "--recipe", path, "--out", tmp_path / "p")
    started = []
    monkeypatch.setattr(stage, "train_and_save", lambda vlm, *_, **__: started.append(vlm))
    projector = MlpProjector(kind="mlp2x_gelu", weights=str(tmp_path / "p"))
    section = recipe.model.model_copy(update={"projector": projector})
    piece = TrainSlice(seed=6, model=section, section=recipe.pretrain)
    stage.pretrain(piece, StageContext({}, tmp_path / "out", None))
    state = started[0].state_dict()
    for key, value in model.state_dict().items():
        if key.startswith(("projector.", "fusion.")):
            assert torch.equal(state[key], value), key


def test_an_imported_projector_of_another_system_is_refused(llm, tmp_path):
    from manyeyes.model.weights.exchange.projector import export_projector

    recipe, model = model_of("llava", llm, 5)
    export_projector(model, "llava", tmp_path / "p.bin")
    path = write_recipe(recipe, tmp_path / "r.yaml")
    run("import-weights", tmp_path / "p.bin", "--recipe", path, "--out", tmp_path / "p")
    with pytest.raises(UserError) as caught:
        load_joint(model_of("mgm", llm, 6)[1], str(tmp_path / "p"))
    assert str(caught.value) == (
        f"The weights '{tmp_path}/p' are of another model: 12 of 16 tensors are missing, first "
        "'fusion.query.0.weight'."
    )


def without(tensors, key):
    return {name: value for name, value in tensors.items() if name != key}


PROBLEMS = {
    "missing": (
        lambda tensors: without(tensors, "model.norm.weight"),
        "'llm.model.norm.weight' is missing.",
    ),
    "unexpected": (
        lambda tensors: {**tensors, "model.resampler.x": torch.zeros(1), "odd": torch.zeros(1)},
        "nobody knows 'model.resampler.x' (and 1 more).",
    ),
    "misshapen": (
        lambda tensors: {**tensors, "model.mm_projector.2.bias": torch.zeros(7)},
        "a shape differs, model.mm_projector.2.bias: (7,) instead of (32,).",
    ),
    "a tower cut short": (
        lambda tensors: without(
            tensors, "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias"
        ),
        "'encoders.clip.tower.pre_layrnorm.bias' is missing.",
    ),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_weights_with_a_problem_are_refused_and_nothing_is_written(kind, llm, tmp_path, capsys):
    change, problem = PROBLEMS[kind]
    recipe, model = model_of("llava", llm, 5)
    tensors = change(published("llava", model.state_dict()))
    released, out = tmp_path / "released", tmp_path / "ours"
    write_release(released, llm, "llava", tensors, "one")
    path = write_recipe(recipe, tmp_path / "r.yaml")
    assert run("import-weights", released, "--recipe", path, "--out", out) == 2
    assert capsys.readouterr().err == (
        f"The weights '{released}' are not those of llava-tiny, named by llava: {problem}\n"
    )
    assert sorted(item.name for item in tmp_path.iterdir()) == ["r.yaml", "released"]


def test_every_system_is_told_by_its_names():
    for system in SYSTEMS:
        keys = ["model.mm_projector.0.weight", *(f"model{mark}x" for mark in SYSTEMS[system].marks)]
        assert recognise(keys) == system


def test_the_sources_tensors_of_shared_memory_are_written_once_each(tmp_path):
    table = torch.ones(4, 2)
    torch.save({"a": table, "b": table}, tmp_path / "x.bin")
    assert open_source(str(tmp_path / "x.bin")).shapes == {"a": (4, 2), "b": (4, 2)}
