"""A training stage with a template, a model and a batch rule of its own."""

import pytest
from model_kit import model_section, pictures, write_llama
from test_recipe import TINY
from training_kit import make_model, make_section

from manyeyes.cli.loading import load_checked
from manyeyes.config.recipe import (
    Batch,
    DeformableAttention,
    FixedRates,
    LearningRate,
    SquareRootRates,
    load_recipe,
    parse_recipe,
    recipe_yaml,
)
from manyeyes.config.recipe.slices import TrainSlice, parse_slice, slice_json, stage_slice
from manyeyes.data.loading.templates import TEMPLATES
from manyeyes.errors import UserError
from manyeyes.evaluation.metrics import METRICS

LOW = load_recipe(TINY.parent / "mgm.yaml")


def changed(recipe, **stages):
    """Return the recipe with keys of its stages replaced, checked as a file would be."""
    parts = {
        name: getattr(recipe, name).model_copy(update=update) for name, update in stages.items()
    }
    return parse_recipe(recipe_yaml(recipe.model_copy(update=parts)), "r.yaml")


def high_resolution():
    """MGM-HD: four crops and the whole in sft, the low resolution's very pretraining before."""
    high = LOW.model.model_copy(
        update={"fusion": LOW.model.fusion.model_copy(update={"crops": 2}), "max_length": 512}
    )
    recipe = LOW.model_copy(update={"name": "mgm-hd", "model": high})
    return changed(recipe, pretrain={"model": LOW.model})


def test_a_high_resolution_recipe_shares_the_low_one_s_pretraining():
    high = high_resolution()
    assert slice_json(high, "pretrain") == slice_json(LOW, "pretrain")
    assert slice_json(high, "sft") != slice_json(LOW, "sft")
    assert parse_slice(slice_json(high, "sft"), TrainSlice).model.fusion.crops == 2
    assert stage_slice(high, "eval").model.fusion.crops == 2


def test_either_stage_may_have_the_model_of_its_own():
    high = high_resolution()
    turned = changed(LOW, sft={"model": high.model})
    for stage in ("pretrain", "sft", "eval"):
        assert slice_json(turned, stage) == slice_json(high, stage)
    assert turned.final_model == high.final_model


def test_a_stage_s_template_is_that_of_its_model():
    captions = changed(LOW, pretrain={"template": "plain"})
    assert stage_slice(captions, "pretrain").model.llm.template == "plain"
    assert slice_json(captions, "sft") == slice_json(LOW, "sft")
    tuned = changed(LOW, sft={"template": "vicuna_v1"})
    assert stage_slice(tuned, "sft").model.llm.template == "vicuna_v1"
    assert stage_slice(tuned, "eval").model.llm.template == "vicuna_v1"
    assert slice_json(tuned, "pretrain") == slice_json(LOW, "pretrain")


@pytest.mark.parametrize("stage", ["pretrain", "sft", "eval"])
def test_a_key_without_a_value_is_not_in_the_slice(stage):
    text = slice_json(LOW, stage)
    assert "null" not in text
    for key in ("template_", "batch_rule", "router_loss"):
        assert key not in text


def test_a_slice_from_before_the_optional_keys_still_reads():
    text = slice_json(LOW, "sft").replace('"llm":{', '"llm":{"router_loss":null,')
    text = text.replace('"section":{', '"section":{"template":null,"model":null,')
    assert parse_slice(text, TrainSlice) == stage_slice(LOW, "sft")


OTHER = [
    (
        {"encoders": LOW.model.encoders[:1]},
        "pretrain.model must have the encoders of the recipe's model, clip, convnext, because the "
        "stages hand on weights by name, but it has clip",
    ),
    (
        {"llm": LOW.model.llm.model_copy(update={"weights": "zoo:other"})},
        "pretrain.model.llm.weights is 'zoo:other', but the stages train one language model, "
        "'zoo:llama-tiny'",
    ),
]


@pytest.mark.parametrize(("update", "expected"), OTHER, ids=["encoders", "language model"])
def test_a_stage_s_model_continues_the_others(update, expected):
    with pytest.raises(UserError) as error:
        changed(LOW, pretrain={"model": LOW.model.model_copy(update=update)})
    assert str(error.value).endswith(expected)


NAMES = [
    (
        "    documents: anls",
        "    documents: anl",
        "eval.tasks.documents: Unknown metric 'anl': known are METRICS; did you mean 'anls'?",
    ),
    (
        "template: plain_chat",
        "template: plain_chatt",
        "model.llm.template: Unknown conversation template 'plain_chatt': known are TEMPLATES; "
        "did you mean 'plain_chat'?",
    ),
    (
        "\npretrain:",
        "\npretrain:\n  template: lama_3",
        "pretrain.template: Unknown conversation template 'lama_3': known are TEMPLATES; "
        "did you mean 'llama_3'?",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "expected"), NAMES)
def test_a_name_that_no_table_has_is_refused_by_every_verb(right, wrong, expected, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(TINY.read_text().replace(right, wrong, 1))
    expected = expected.replace("METRICS", ", ".join(sorted(METRICS)))
    expected = expected.replace("TEMPLATES", ", ".join(sorted(TEMPLATES)))
    with pytest.raises(UserError) as error:
        load_checked(path)
    word = wrong.split(":")[-1].strip()
    (line,) = [n for n, text in enumerate(path.read_text().splitlines(), 1) if f" {word}" in text]
    assert str(error.value) == f"{path}:{line}: {expected}"


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_of_the_table_can_be_named(metric, tmp_path):
    path = tmp_path / "r.yaml"
    text = TINY.read_text()
    path.write_text(text.replace("    documents: anls", f"    documents: {metric}", 1))
    assert load_checked(path).evaluation.tasks["documents"] == metric


def test_check_looks_into_the_stages_models(tmp_path):
    encoders = tuple(e.model_copy(update={"spec": "nothing"}) for e in LOW.model.encoders)
    other = LOW.model.model_copy(update={"encoders": encoders})
    recipe = changed(LOW, pretrain={"model": other})
    (tmp_path / "r.yaml").write_text(recipe_yaml(recipe))
    with pytest.raises(UserError) as error:
        load_checked(tmp_path / "r.yaml")
    assert [problem.split(": ")[1] for problem in str(error.value).splitlines()] == [
        "pretrain.model.encoders.0.spec",
        "pretrain.model.encoders.1.spec",
    ]


@pytest.mark.parametrize(
    ("rule", "factor"),
    [
        (None, 1.0),
        (FixedRates(kind="none"), 1.0),
        (SquareRootRates(kind="sqrt", base_batch=4), 1.0),
        (SquareRootRates(kind="sqrt", base_batch=16), 0.5),
        (SquareRootRates(kind="sqrt", base_batch=1), 2.0),
    ],
    ids=["absent", "none", "at base", "below base", "above base"],
)
def test_rates_follow_the_batch_by_rule_and_module_rates_combine(rule, factor):
    """Cambrian-1: rate x sqrt(batch / base). The seed systems' per-module rates exclude another."""
    from manyeyes.training.optimizer import build_optimizer, set_learning_rate

    rates = {"encoders.clip.*": 1e-5, "projector.*": 4e-3, "llm.lm_head.*": 3e-4}
    section = make_section(
        batch=Batch(size=4, per_device=4, accumulation=1),
        batch_rule=rule,
        learning_rate=2e-4,
        learning_rates=tuple(LearningRate(modules=m, learning_rate=r) for m, r in rates.items()),
    )
    model = make_model()
    optimizer = build_optimizer(model, section)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: group["base_rate"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(found) == len(names)
    for name, rate in found.items():
        expected = next((r for m, r in rates.items() if name.startswith(m[:-1])), 2e-4)
        assert rate == pytest.approx(expected * factor)
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(4e-3 * factor / 2)


@pytest.fixture
def pretrained(tmp_path):
    """A checkpoint of a low resolution, and its model's section."""
    from manyeyes.model.processor import Processor
    from manyeyes.model.saving import save_model
    from manyeyes.model.transformer import load_tokenizer
    from manyeyes.model.vlm import VisionLanguageModel

    low = model_section(write_llama(tmp_path / "llm"), names=("clip", "convnext"))
    vlm = VisionLanguageModel.from_recipe(low, seed=3)
    folder = tmp_path / "pretrain"
    save_model(vlm, load_tokenizer(low.llm.weights), Processor(canvas_size=128), folder)
    return folder, low, vlm


def run_sft(monkeypatch, model, checkpoint, out):
    """Run sft up to where it would train and return the model it would train."""
    from manyeyes.config.recipe.slices import TrainSlice
    from manyeyes.pipeline.stages import StageContext
    from manyeyes.pipeline.stages import sft as stage

    trained = []
    monkeypatch.setattr(stage, "inherit", lambda *_: None)
    monkeypatch.setattr(stage, "train_and_save", lambda vlm, *_, **__: trained.append(vlm) or {})
    piece = TrainSlice.model_construct(seed=1, model=model, section=None)
    stage.sft(piece, StageContext({"checkpoint": checkpoint}, out, None))
    return trained[0]


def test_sft_loads_the_checkpoint_into_its_own_model(tmp_path, monkeypatch, pretrained):
    import torch

    folder, low, vlm = pretrained
    same = run_sft(monkeypatch, low, folder, tmp_path)
    assert torch.equal(same.see(pictures(1))[0], vlm.eval().see(pictures(1))[0])
    high = run_sft(monkeypatch, low.model_copy(update={"grid": 8}), folder, tmp_path)
    assert (vlm.config.num_visual_tokens, high.config.num_visual_tokens) == (16, 64)
    ours, theirs = high.state_dict(), vlm.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sft_says_what_of_the_checkpoint_does_not_fit(tmp_path, monkeypatch, pretrained):
    folder, low, _ = pretrained
    fusion = DeformableAttention(kind="deformable_attention", heads=4, points=2)
    other = low.model_copy(update={"fusion": fusion})
    with pytest.raises(UserError) as error:
        run_sft(monkeypatch, other, folder, tmp_path)
    text = str(error.value)
    assert text.startswith(
        f"Stage sft cannot continue with its model. The weights '{folder}' are of another model: "
    )
    assert "'fusion." in text
    assert (
        text.endswith("missing, first 'fusion.queries.0.weight'.") or "tensors are missing" in text
    )


def test_a_template_of_another_language_model_is_refused_before_training(tmp_path, pretrained):
    from manyeyes.data.loading.conversation import end_ids
    from manyeyes.model.transformer import load_tokenizer

    with pytest.raises(UserError) as error:
        end_ids(load_tokenizer(pretrained[1].llm.weights), "qwen")
    assert str(error.value).startswith("The template 'qwen' ends answers with <|im_end|>, ")
