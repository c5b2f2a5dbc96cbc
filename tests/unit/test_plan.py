"""A plan agrees with operations worked out elsewhere and with what a real pass keeps."""

import json
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from manyeyes.cli import main
from manyeyes.errors import UserError
from manyeyes.plan.activations import Kept
from manyeyes.plan.estimate import _cost, _language, _vision, make_plan, row_flops
from manyeyes.plan.fitting import nearest
from manyeyes.plan.gpus import GPUS, Fleet, parse_fleet
from manyeyes.plan.memory import RESERVE, Need, Setting, memory_of
from manyeyes.plan.stages import build_on_meta, training_stages
from manyeyes.recipe import load_recipe
from manyeyes.train.flops import Trained
from manyeyes.train.freeze import apply_trainable

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = RECIPES / "tiny/cambrian.yaml"

# TFLOP of a caption (1024 + 28 positions, 20 learned), of a conversation with a picture (1024 + 300,
# 150) and without (420, 230), with Eagle's CLIP at 336 px: an independent sheet's numbers.
SHEET = [
    ("eagle-x4-vicuna-7b", 40.4, 90.2, 16.6),
    ("eagle-x5-vicuna-7b", 43.5, 99.2, 16.6),
    ("eagle-x4-vicuna-13b", 67.0, 140.4, 32.4),
    ("eagle-x5-vicuna-13b", 70.0, 149.4, 32.4),
]


@pytest.mark.parametrize(("name", "caption", "talk", "words"), SHEET, ids=[row[0] for row in SHEET])
def test_operations_agree_with_the_sheet(name, caption, talk, words):
    last = training_stages(load_recipe(RECIPES / f"{name}.yaml"))[-1]
    clip = last.model.encoders[0].model_copy(update={"released": 336})
    model = last.model.model_copy(update={"encoders": (clip, *last.model.encoders[1:])})
    cost = _cost(model, "bfloat16")
    everything = Trained(frozenset(cost.encoder_flops), projector=True, language_model=True)
    frozen = Trained(frozenset(), projector=True, language_model=False)
    assert row_flops(cost, frozen, 1052, 20, 1) / 1e12 == pytest.approx(caption, rel=0.02)
    assert row_flops(cost, everything, 1324, 150, 1) / 1e12 == pytest.approx(talk, rel=0.02)
    assert row_flops(cost, everything, 420, 230, 0) / 1e12 == pytest.approx(words, rel=0.02)


def need(parameters, trainable, *, kept=0):
    return Need(
        parameters=parameters,
        trainable=trainable,
        float32=False,
        distributed=True,
        vision=Kept(),
        language=Kept(kept, kept // 10),
        logits=0,
    )


# Eagle-X5 with all 9.05e9 and 15.3e9 parameters trained on 8 GPUs, GB of weights + gradients + state.
STATES = [
    (9.05e9, 2, 34.0),
    (15.3e9, 2, 57.4),
    (9.05e9, 3, 18.1),
    (15.3e9, 3, 30.6),
]


@pytest.mark.parametrize(("parameters", "zero", "gigabytes"), STATES)
def test_state_is_shared_out_as_the_sheet_says(parameters, zero, gigabytes):
    count = int(parameters)
    memory = memory_of(need(count, count), Setting(8, zero, False, False, 1))
    held = memory.weights + memory.gradients + memory.optimizer
    assert held / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert memory.reserve == RESERVE


def test_offload_moves_the_state_to_main_memory_and_recomputation_keeps_less():
    here = memory_of(need(10**9, 10**9, kept=10**9), Setting(4, 3, False, False, 2))
    away = memory_of(need(10**9, 10**9, kept=10**9), Setting(4, 3, True, True, 2))
    assert (away.weights, away.gradients, away.optimizer) == (0, 0, 0)
    assert away.host - here.host == here.weights + here.gradients + here.optimizer
    assert (here.activations, away.activations) == (2 * 10**9, 2 * 10**8)


GIB = 2**30
NEAREST = [
    ("it fits", Setting(8, 2, False, False, 4), 80, Setting(8, 2, False, False, 4)),
    ("recomputation", Setting(8, 2, False, False, 4), 22, Setting(8, 2, False, True, 4)),
    ("nothing", Setting(8, 2, False, False, 4), 2, None),
]


@pytest.mark.parametrize(
    ("start", "capacity", "expected"), [row[1:] for row in NEAREST], ids=[row[0] for row in NEAREST]
)
def test_the_nearest_setting_changes_as_little_as_possible(start, capacity, expected):
    wanted = need(4 * 10**9, 4 * 10**9, kept=5 * 10**9)
    assert nearest(wanted, start, capacity * GIB, batch=128) == expected


def test_a_nearest_setting_keeps_the_batch_whole():
    found = nearest(need(30 * 10**9, 30 * 10**9), Setting(3, 3, False, False, 2), 40 * GIB, 96)
    assert found is not None
    assert 96 % (found.gpus * found.per_device) == 0


FLEETS = [("32xA100-80G", Fleet(32, "A100-80G")), ("h200-141g", Fleet(1, "H200-141G"))]


@pytest.mark.parametrize(("text", "fleet"), FLEETS)
def test_a_fleet_is_a_number_and_a_name(text, fleet):
    assert parse_fleet(text) == fleet
    assert parse_fleet(str(fleet)) == fleet


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("0xA100-80G", "--gpus '0xA100-80G': write a number and a name, like 32xA100-80G."),
        ("eight", f"Unknown GPU 'eight': known are {', '.join(sorted(GPUS))}."),
    ],
)
def test_a_wrong_fleet_is_refused(text, error):
    with pytest.raises(UserError) as caught:
        parse_fleet(text)
    assert str(caught.value) == error


def test_a_batch_that_does_not_divide_names_the_stage():
    recipe = load_recipe(RECIPES / "llava-1.5-7b.yaml")
    with pytest.raises(UserError, match=r"^pretrain: batch: size 256 is not a multiple"):
        make_plan(recipe, parse_fleet("3xA100-80G"))


def kept_by(model, run):
    """Bytes of the storages that a real forward pass saves, parameters apart."""
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("name", ["eagle-x5", "mgm", "cambrian"])
def test_what_is_kept_agrees_with_a_real_pass_within_15_percent(name):
    """Eyes and language model, whole sft stage, against tensors of a forward pass on the CPU."""
    from manyeyes.model.overview import decode
    from manyeyes.model.vlm import VisionLanguageModel

    stage = training_stages(load_recipe(RECIPES / f"tiny/{name}.yaml"))[-1]
    planned_model = build_on_meta(stage.model, "float32")
    apply_trainable(planned_model, stage.section.train)
    seen, vision = _vision(planned_model)
    language = _language(planned_model, 200, before=seen)

    model = VisionLanguageModel.from_recipe(stage.model, seed=0, load=False)
    apply_trainable(model, stage.section.train)
    side = max(expert.spec.image_size for expert in model.experts.values())
    picture = torch.zeros(1, 3, side, side, dtype=torch.uint8)

    def look():
        maps = model.see(picture)
        visual = model.project(maps)
        model.fusion.rehearse(maps)
        return visual

    embeddings = torch.zeros(1, 200, model.llm.config.hidden_size, requires_grad=True)
    assert vision.everything == pytest.approx(kept_by(model, look), rel=0.15)
    real = kept_by(model, lambda: decode(model, embeddings))
    assert language.everything == pytest.approx(real, rel=0.15)
    assert 0 < language.recomputed < language.everything


def test_state_is_what_a_real_optimizer_holds():
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.train.optimizer import build_optimizer

    recipe = load_recipe(TINY)
    stage = training_stages(recipe)[-1]
    plan = make_plan(recipe, parse_fleet("A100-40G")).stages[-1]
    model = VisionLanguageModel.from_recipe(stage.model, seed=0, load=False)
    apply_trainable(model, stage.section.train)
    optimizer = build_optimizer(model, stage.section)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [t for s in optimizer.state.values() for t in s.values() if t.ndim]
    memory = plan.table[0][1]
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert memory.optimizer == pytest.approx(sum(t.nbytes for t in moments), rel=0.001)


def test_the_verb_prints_json_and_fits(capsys):
    assert main(["plan", str(TINY), "--gpus", "A100-40G", "--price", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["cost"] == pytest.approx(found["gpu_hours"] * 2)
    assert list(found["stages"]) == ["pretrain", "sft"]
    sft = found["stages"]["sft"]
    assert sft["visual_tokens"] == 72
    assert sft["lengths"]["source"].startswith("assumed: ")
    assert sft["flops"] == pytest.approx(sft["flops_per_sample"] * 380 * 32)


def test_what_does_not_fit_ends_with_3_and_the_nearest_that_does(capsys):
    recipe = str(RECIPES / "llava-1.5-7b.yaml")
    assert main(["plan", recipe, "--gpus", "1xA100-80G"]) == 3
    error = capsys.readouterr().err
    assert "sft does not fit: zero 3, 16 a GPU needs " in error
    assert "even with recomputation, and a A100-80G has 79.1; nearest is " in error
