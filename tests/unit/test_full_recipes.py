"""Every full recipe is complete, is shown without weights or network, and counts as published.

The expected numbers are worked out from the papers and the authors' code, not read off this model.
"""

from pathlib import Path

import pytest

from manyeyes.cli.show import summary, trained_stages
from manyeyes.config.recipe import load_recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.model.weights.published import PUBLISHED
from manyeyes.plan.stages import (
    build_on_meta,
    learning_rates,
    trainable_names,
    training_stages,
)

RECIPES = Path(__file__).parents[2] / "recipes"
FULL = sorted(path.stem for path in RECIPES.glob("*.yaml"))
MGM = ("2b", "7b", "13b", "8b", "8x7b", "34b")


def full(name):
    return load_recipe(RECIPES / f"{name}.yaml")


def shown(recipe):
    last = training_stages(recipe)[-1]
    return summary(build_on_meta(last.model, last.weight_type), [])


# name: visual tokens, projector parameters, fusion parameters.
# Projector: C h + h + h h + h. Patch info mining: 2 (1024) + 1024 x 1024 + 1024, and twice
# 2 (2880) + 2880 x 1024 + 1024. SVA: the reference's 47.3M + 13.9M in front, 22.1M a layer inside.
EAGLE_X4, EAGLE_X5 = 6656, 7680
MINING = 2 * 1024 + 1024 * 1024 + 1024 + 2 * (2 * 2880 + 2880 * 1024 + 1024)


def mlp(width_in, width):
    return width_in * width + width + width * width + width


EXPECTED = [
    ("eagle-x4-vicuna-7b", 1024, mlp(EAGLE_X4, 4096), 44.0, 0),
    ("eagle-x5-vicuna-7b", 1024, mlp(EAGLE_X5, 4096), 48.2, 0),
    ("eagle-x4-vicuna-13b", 1024, mlp(EAGLE_X4, 5120), 60.3, 0),
    ("eagle-x5-vicuna-13b", 1024, mlp(EAGLE_X5, 5120), 65.5, 0),
    ("eagle-x4-vicuna-13b-plus", 1024, mlp(EAGLE_X4, 5120), 60.3, 0),
    ("eagle-x4-llama3-8b-plus", 1024, mlp(EAGLE_X4, 4096), 44.0, 0),
    ("eagle-x5-yi-34b-plus", 1024, mlp(EAGLE_X5, 7168), 106.4, 0),
    ("mgm-7b", 576, mlp(1024, 4096), 21.0, MINING),
    ("mgm-2b", 576, mlp(1024, 2048), 6.3, MINING),
    ("mgm-7b-hd", 2880, mlp(1024, 4096), 21.0, MINING),
    ("mgm-8x7b-hd", 2880, mlp(1024, 4096), 21.0, MINING),
    ("mgm-34b-hd", 2880, mlp(1024, 7168), 58.7, MINING),
    ("llava-1.5-7b", 576, mlp(1024, 4096), 21.0, 0),
    ("eve-7b", 601, mlp(1024, 4096), 21.0, 0),
    ("eve-7b-hd", 2353, mlp(1024, 4096), 21.0, 0),
]


@pytest.mark.parametrize(
    ("name", "tokens", "projector", "millions", "fusion"),
    EXPECTED,
    ids=[row[0] for row in EXPECTED],
)
def test_tokens_projector_and_fusion_are_the_published_ones(
    name, tokens, projector, millions, fusion
):
    found = shown(full(name))
    assert found["visual_tokens"] == tokens
    assert found["projector_parameters"] == projector
    assert round(projector / 1e6, 1) == millions
    assert found["fusion"]["parameters"] == fusion


@pytest.mark.parametrize(
    ("name", "inside"), [("cambrian-8b", 220.6), ("cambrian-13b", 241.5), ("cambrian-34b", 255.1)]
)
def test_cambrian_has_576_tokens_24_row_ends_and_the_published_aggregator(name, inside):
    found = shown(full(name))
    assert found["visual_tokens"] == 576 + 24
    assert [encoder["grid"] for encoder in found["encoders"]] == [24, 24, 24, 96]
    assert [encoder["width"] for encoder in found["encoders"]] == [1152, 1024, 1536, 5760]
    into = 2.2 + 2.1 + 2.6 + 7.0
    assert found["fusion"]["parameters"] / 1e6 == pytest.approx(47.3 + into + inside, abs=0.3)


def test_a_projector_of_7168_and_four_experts_has_the_reference_count():
    assert round(mlp(EAGLE_X4, 7168) / 1e6, 1) == 99.1


@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_names_a_language_model_that_is_known_offline(name):
    recipe = full(name)
    assert recipe.name == name
    for stage in training_stages(recipe):
        assert stage.model.llm.weights in PUBLISHED
    assert all(part.engine.kind == "deepspeed" for part in (recipe.pretrain, recipe.sft))


COUNTS = {
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "lmsys/vicuna-13b-v1.5": 13_015_864_320,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "NousResearch/Nous-Hermes-2-Yi-34B": 34_388_917_248,
    "google/gemma-2b-it": 2_506_172_416,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
}


@pytest.mark.parametrize("reference", sorted(PUBLISHED))
def test_a_published_language_model_has_its_published_number_of_parameters(reference):
    import torch

    from manyeyes.model.transformer import build_language_model, load_language_model_config

    with torch.device("meta"):
        model = build_language_model(load_language_model_config(reference))
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[reference]


@pytest.mark.parametrize("size", MGM)
def test_a_high_resolution_mgm_takes_its_pretrain_from_the_low_resolution_one(size):
    low, high = full(f"mgm-{size}"), full(f"mgm-{size}-hd")
    assert slice_json(low, "pretrain") == slice_json(high, "pretrain")
    assert slice_json(low, "prepare") == slice_json(high, "prepare")
    assert slice_json(low, "validate") == slice_json(high, "validate")
    assert slice_json(low, "sft") != slice_json(high, "sft")


def test_a_high_resolution_eve_takes_both_its_first_stages_from_the_low_resolution_one():
    low, high = full("eve-7b"), full("eve-7b-hd")
    assert slice_json(low, "prealign", "patches") == slice_json(high, "prealign", "patches")
    for stage in ("prepare", "validate", "pretrain"):
        assert slice_json(low, stage) == slice_json(high, stage)
    assert slice_json(low, "sft") != slice_json(high, "sft")
    for recipe, side in ((low, 672), (high, 1344)):
        (patches,) = shown(recipe)["encoders"]
        assert (patches["input_size"], patches["parameters"]) == (side, 9_003_008)
        assert recipe.pretrain.inherit == "whole"


EVE = ("encoders.patches.*", "projector.*", "alignment.*")
RATES = [
    ("eagle-x5-vicuna-7b", {"projector.*": 1e-3}, {"*": 2e-5}, 256, 128),
    ("eagle-x5-yi-34b-plus", {"projector.*": 2e-4}, {"*": 2e-5}, 1024, 1024),
    (
        "mgm-34b",
        {"projector.*": 1e-3, "fusion.*": 1e-3},
        {"projector.*": 2e-5, "fusion.*": 2e-5, "llm.*": 1e-5},
        256,
        128,
    ),
    (
        "cambrian-8b",
        {
            "projector.*": 1e-3,
            "fusion.*": 1e-3,
            "fusion.samplers.*": 1e-4,
            "fusion.inside_samplers.*": 1e-4,
            "fusion.query": 1e-4,
        },
        {"projector.*": 4e-5, "fusion.*": 4e-5, "llm.*": 4e-5},
        512,
        512,
    ),
    (
        "llava-1.5-7b",
        {"projector.*": 1e-3},
        {"projector.*": 2e-5, "llm.*": 2e-5},
        256,
        128,
    ),
    (
        "eve-7b",
        dict.fromkeys((*EVE, "llm.*"), 4e-5),
        dict.fromkeys((*EVE, "llm.*"), 2e-5),
        512,
        128,
    ),
]


@pytest.mark.parametrize(
    ("name", "first", "second", "batch", "sft_batch"), RATES, ids=[row[0] for row in RATES]
)
def test_rates_and_batches_are_the_published_ones(name, first, second, batch, sft_batch):
    pretrain, sft = training_stages(full(name))[-2:]
    for stage, expected in ((pretrain, first), (sft, second)):
        names = trainable_names(build_on_meta(stage.model, stage.weight_type), stage.section)
        assert learning_rates(names, stage.section) == expected
    assert (pretrain.section.batch.size, sft.section.batch.size) == (batch, sft_batch)


def test_show_lists_every_stage_with_what_it_trains():
    rows = {row.stage: row for row in trained_stages(full("mgm-2b-hd"))}
    assert list(rows) == ["pretrain", "sft"]
    assert rows["pretrain"].num_parameters == MINING + mlp(1024, 2048)
    assert rows["sft"].num_parameters == MINING + mlp(1024, 2048) + COUNTS["google/gemma-2b-it"]


# Tiny recipe, its full twin, and which published family each tiny family stands in for, where the
# zoo has no part of the same one.
TWINS = [
    ("eagle-x5", "eagle-x5-vicuna-7b", {}),
    ("mgm", "mgm-7b", {}),
    ("eve", "eve-7b", {}),
    ("cambrian", "cambrian-8b", {"siglip": "clip", "clip": "eva02", "dinov2": "pix2struct"}),
]


@pytest.mark.parametrize(("tiny", "twin", "stand_ins"), TWINS, ids=[row[0] for row in TWINS])
def test_tiny_and_full_have_the_same_mechanism(tiny, twin, stand_ins):
    small, large = load_recipe(RECIPES / f"tiny/{tiny}.yaml"), full(twin)
    one, two = small.final_model, large.final_model
    assert one.fusion.kind == two.fusion.kind
    assert one.projector == two.projector
    assert one.normalization == two.normalization
    families = [row["family"] for row in shown(large)["encoders"]]
    assert [row["family"] for row in shown(small)["encoders"]] == [
        stand_ins.get(family, family) for family in families
    ]
    finer = [encoder.grid is not None for encoder in two.encoders]
    assert [encoder.grid is not None for encoder in one.encoders] == finer
    assert list(small.prealign.experts) == list(large.prealign.experts)
    for name, section in small.prealign.experts.items():
        assert section.train == large.prealign.experts[name].train
    assert small.pretrain.inherit == large.pretrain.inherit
    assert (one.alignment is None) == (two.alignment is None)
    for stage in ("pretrain", "sft"):
        section, counterpart = getattr(small, stage), getattr(large, stage)
        assert section.train == counterpart.train
        assert section.schedule.kind == counterpart.schedule.kind
        assert (section.model is None) == (counterpart.model is None)
