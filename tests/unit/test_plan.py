"""A plan agrees with operations worked out elsewhere; test_plan_memory.py has its memory."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from preflight_kit import write_recipe

from manyeyes.cli import main
from manyeyes.config.recipe import load_recipe
from manyeyes.errors import UserError
from manyeyes.model.weights.published import PUBLISHED
from manyeyes.plan.activations import Course
from manyeyes.plan.estimate import _cost, make_plan, row_flops
from manyeyes.plan.fitting import nearest
from manyeyes.plan.gpus import GPUS, Fleet, parse_fleet
from manyeyes.plan.memory import RESERVE, Need, Setting, memory_of
from manyeyes.plan.stages import build_on_meta, training_stages
from manyeyes.training.flops import Trained
from manyeyes.training.freeze import apply_trainable

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


@pytest.fixture(scope="module")
def eagle_x5():
    """What Eagle-X5 with Vicuna-7B and CLIP at 336 px costs; its encoders are counted once."""
    last = training_stages(load_recipe(RECIPES / "eagle-x5-vicuna-7b.yaml"))[-1]
    clip = last.model.encoders[0].model_copy(update={"released": 336})
    model = last.model.model_copy(update={"encoders": (clip, *last.model.encoders[1:])})
    return _cost(model, "bfloat16")


def blocks_of(reference):
    values = PUBLISHED[reference]
    width, wide = values["hidden_size"], values["intermediate_size"]
    layer = 4 * width * width + 3 * width * wide + 2 * width
    return values["num_hidden_layers"] * layer + width


@pytest.mark.parametrize(("name", "caption", "talk", "words"), SHEET, ids=[row[0] for row in SHEET])
def test_operations_agree_with_the_sheet(eagle_x5, name, caption, talk, words):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    reference, experts = recipe.model.llm.weights, [e.name for e in recipe.model.encoders]
    cost = replace(
        eagle_x5,
        block_parameters=blocks_of(reference),
        layers=PUBLISHED[reference]["num_hidden_layers"],
        width=PUBLISHED[reference]["hidden_size"],
        encoder_flops={expert: eagle_x5.encoder_flops[expert] for expert in experts},
    )
    everything = Trained(frozenset(experts), projector=True, language_model=True)
    frozen = Trained(frozenset(), projector=True, language_model=False)
    assert row_flops(cost, frozen, 1052, 20, 1) / 1e12 == pytest.approx(caption, rel=0.02)
    assert row_flops(cost, everything, 1324, 150, 1) / 1e12 == pytest.approx(talk, rel=0.02)
    assert row_flops(cost, everything, 420, 230, 0) / 1e12 == pytest.approx(words, rel=0.02)


def test_a_vicuna_7b_is_read_off_its_model_as_the_config_says(eagle_x5):
    assert eagle_x5.block_parameters == blocks_of("lmsys/vicuna-7b-v1.5")
    assert sum(eagle_x5.encoder_flops.values()) / 1e12 == pytest.approx(15.31, rel=0.01)


def need(parameters, trainable, *, kept=0):
    return Need(
        parameters=parameters,
        trainable=trainable,
        float32=False,
        distributed=True,
        batch=1024,
        supervised=1,
        piece=1,
        course=Course.flat(0, kept),
        recomputed=Course.flat(0, kept // 10),
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


def course(*moments):
    return Course(*(np.array(column, dtype=np.int64) for column in zip(*moments, strict=True)))


# fixed, per sample, per position, gradients: the end of the forward pass, and that of the backward
HALVES = course((0, 100, 10, 0), (30, 20, 0, 500))
PEAKS = [
    ("most is kept", (10, 20), False, 1200),
    ("gradients are most", (1, 2), False, 550),
    ("gradients are there before", (1, 2), True, 120),
]


@pytest.mark.parametrize(
    ("counts", "before", "peak"), [row[1:] for row in PEAKS], ids=[row[0] for row in PEAKS]
)
def test_the_highest_moment_depends_on_the_batch(counts, before, peak):
    assert HALVES.peak(*counts, before=before) == peak


def test_gradients_that_come_as_kept_tensors_go_are_not_counted_twice():
    wanted = replace(need(1000, 125), distributed=False, float32=True, batch=10, course=HALVES)
    whole = memory_of(wanted, Setting(1, 0, False, False, 10))
    assert whole.gradients + whole.activations == HALVES.peak(10, 1, before=False)
    in_turns = memory_of(replace(wanted, batch=20), Setting(1, 0, False, False, 10))
    assert in_turns.activations == HALVES.peak(10, 1, before=True)


def test_a_mixture_of_experts_is_held_whole_and_computes_with_two():
    stage = training_stages(load_recipe(RECIPES / "mgm-8x7b.yaml"))[-1]
    values = PUBLISHED[stage.model.llm.weights]
    width, wide, layers = (
        values[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    shared = 2 * width**2 + 2 * width * width // 4 + 8 * width + 2 * width
    expert = 3 * width * wide
    cost = _cost(stage.model, "bfloat16")
    assert cost.block_parameters == layers * (shared + 2 * expert) + width
    model = build_on_meta(stage.model, "bfloat16")
    held = sum(parameter.numel() for parameter in model.llm.parameters())
    assert held == layers * (shared + 8 * expert) + width + 2 * values["vocab_size"] * width


def test_state_is_what_a_real_optimizer_holds():
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.training.optimizer import build_optimizer

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
    assert sft["flops"] == pytest.approx(sft["flops_per_sample"] * 900 * 16)


def test_a_plan_without_gpus_lists_them(capsys):
    assert main(["plan", str(TINY)]) == 2
    assert capsys.readouterr().err == (
        "--gpus is missing: say how many of which, like 32xA100-80G; known are "
        f"{', '.join(GPUS)}.\n"
    )


def test_a_plan_says_that_the_data_are_not_here(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = str(write_recipe(tmp_path))
    assert main(["plan", recipe, "--gpus", "A100-40G"]) == 0
    assert "pretrain: data/mine is not here, so assumed: captions" in capsys.readouterr().out
    assert main(["plan", recipe, "--gpus", "A100-40G", "--dataset", "data/mine"]) == 2


def test_what_does_not_fit_ends_with_3_and_the_nearest_that_does(capsys):
    recipe = str(RECIPES / "llava-1.5-7b.yaml")
    assert main(["plan", recipe, "--gpus", "1xA100-80G"]) == 3
    error = capsys.readouterr().err
    assert "sft does not fit: zero 3, 16 a GPU needs " in error
    assert "even with recomputation, and a A100-80G has 79.1; nearest is " in error
