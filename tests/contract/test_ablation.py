"""The fusion table: its recipes differ in the fusion alone, its pipeline shares what it can."""

import json
from pathlib import Path

import pytest

from manyeyes.config.recipe import PrealignSection, load_recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.kubeflow.pipelines import ablation
from manyeyes.pipeline.explain import explain

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy"
BASE = load_recipe(ROOT / "recipes/tiny/eagle-x5.yaml")
RECIPES = ablation.variants(BASE)
TOKENS = {
    "sequence_append": 128,
    "channel_concat": 64,
    "mixture_of_resolution": 64,
    "patch_info_mining": 64,
    "deformable_attention": 64,
    "spatial_vision_aggregator": 72,
}


def test_every_fusion_that_joins_encoders_has_a_line():
    assert list(RECIPES) == list(TOKENS)


@pytest.mark.parametrize("kind", RECIPES)
def test_a_line_differs_from_the_first_in_the_fusion_and_what_goes_with_it(kind):
    def flat(value, path=""):
        if not isinstance(value, dict):
            return {path: value}
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}.{key}").items()}

    first, other = (
        flat(recipe.model_dump(mode="json", by_alias=True))
        for recipe in (RECIPES["sequence_append"], RECIPES[kind])
    )
    changed = {key for key in {**first, **other} if first.get(key) != other.get(key)}
    fusion = {key for key in changed if key.startswith(".model.fusion.")}
    assert changed - fusion <= {".name", ".model.encoders", ".pretrain.train"}
    for one, same in zip(first[".model.encoders"], other[".model.encoders"], strict=True):
        assert {**one, "grid": None} == {**same, "grid": None}
    for stage, expert in (
        ("prepare", None), ("validate", None), ("prealign", "clip"), ("prealign", "convnext"),
    ):  # fmt: skip
        texts = {slice_json(recipe, stage, expert) for recipe in RECIPES.values()}
        assert len(texts) == 1


@pytest.mark.parametrize("kind", RECIPES)
def test_a_line_builds_the_model_it_names_and_all_of_its_fusion_trains(kind):
    import torch

    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.training.freeze import apply_trainable

    recipe = RECIPES[kind]
    with torch.device("meta"):
        model = VisionLanguageModel.from_recipe(recipe.model, seed=0, load=False)
    assert model.config.num_visual_tokens == TOKENS[kind]
    for section in (recipe.pretrain, recipe.sft):
        apply_trainable(model, section.train)
        assert all(parameter.requires_grad for parameter in model.fusion.parameters())


def test_a_recipe_of_one_encoder_is_refused():
    model = BASE.model.model_copy(update={"encoders": BASE.model.encoders[:1]})
    with pytest.raises(UserError) as error:
        ablation.variants(BASE.model_copy(update={"model": model}))
    assert str(error.value) == (
        "Recipe eagle-x5-tiny has one encoder; an ablation of fusions needs two to join."
    )


def test_an_unknown_fusion_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = str(ROOT / "recipes/tiny/eagle-x5.yaml")
    assert ablation.main([recipe, "--fusions", "chanel_concat"]) == 2
    assert capsys.readouterr().err == (
        "Unknown fusion 'chanel_concat': known are channel_concat, deformable_attention, "
        "mixture_of_resolution, patch_info_mining, sequence_append, spatial_vision_aggregator; "
        "did you mean 'channel_concat'?\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebodys_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "run", lambda *_, **__: pytest.fail("it was run"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/table.md").write_text("my table")
    recipe = str(ROOT / "recipes/tiny/eagle-x5.yaml")
    assert ablation.main([recipe, "--out", "mine"]) == 2
    assert capsys.readouterr().err == (
        "Cannot write to mine: it holds table.md and is no result of manyeyes; give another folder "
        "with --out.\n"
    )
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["table.md"]
    assert (tmp_path / "mine/table.md").read_text() == "my table"


def test_a_table_is_written_over_its_earlier_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "run", lambda *_, **__: None)

    def compared(recipes):
        (tmp_path / "out/table.json").write_text("old")  # as if it ended here
        raise ManyeyesError(f"{len(recipes)} lines")

    monkeypatch.setattr(ablation, "compare", compared)
    recipe = str(ROOT / "recipes/tiny/eagle-x5.yaml")
    for kinds in (["channel_concat"], ["channel_concat", "sequence_append"]):
        assert ablation.main([recipe, "--out", "out", "--fusions", *kinds]) == 1
        written = {path.stem for path in (tmp_path / "out/recipes").iterdir()}
        assert written == set(kinds)


def test_a_stopped_ablation_goes_on_and_shares_its_stages(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(TOY))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setattr(
        "manyeyes.pipeline.fingerprint.code_digest", lambda stage, _: f"code-of-{stage}"
    )
    monkeypatch.setattr("manyeyes.tracking.sync.sync", lambda _run: None)
    skipped = BASE.model_copy(update={"prealign": PrealignSection(experts={})})
    kinds = ("channel_concat", "deformable_attention")
    recipes = {kind: ablation.variants(skipped)[kind] for kind in kinds}

    def run(**actions):
        monkeypatch.setenv("TOY_ACTIONS", json.dumps(actions))
        for path in tmp_path.glob("runs/*/progress.jsonl"):
            path.unlink()
        ablation.run(skipped, recipes, quiet=True)

    def states():
        (path,) = tmp_path.glob("runs/*ablation*/progress.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {line["stage"]: line["state"] for line in lines if line["event"] == "end"}

    with pytest.raises(ManyeyesError) as error:
        run(**{"eval:deformable_attention": "fail:ManyeyesError"})
    assert str(error.value) == (
        "eval:deformable_attention: The toy was told to fail in eval:deformable_attention."
    )
    own = [f"{stage}:{kind}" for kind in kinds for stage in ("pretrain", "sft", "eval")]
    first = states()  # kfp.local's order of independent tasks is its own
    assert first.pop("eval:deformable_attention") == "failed"
    run()
    stages = ["prepare", "validate", *own]
    assert states() == {stage: "cached" if stage in first else "done" for stage in stages}
    for recipe in recipes.values():
        cached = {answer.task.label: answer.cached for answer in explain(recipe)}
        assert cached == {**dict.fromkeys(cached, True), "register": False}
    run()
    assert not list(tmp_path.glob("runs/*ablation*/progress.jsonl"))  # nothing was started
