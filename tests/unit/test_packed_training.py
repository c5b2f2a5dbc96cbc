"""Packed training is unpacked training: the same losses, and the same weights after a resume."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from training_kit import constant, make_dataset, make_model, make_section, run

from manyeyes.config.recipe import Batch, TokenBudget, load_recipe, parse_recipe
from manyeyes.config.recipe.slices import TrainSlice, parse_slice, slice_json
from manyeyes.errors import Interrupted, UserError
from manyeyes.runtime.progress import Progress

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "eagle-x5.yaml"
TEXT = (RECIPE.parents[2] / "tests/recipes/long.yaml").read_text()
BATCH = "  batch:\n    size: 32\n    per_device: 32\n    accumulation: 1\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("training") / "data")


def section(budget=None, **changes):
    packing = None if budget is None else TokenBudget(tokens=budget)
    batch = Batch(size=8, per_device=4, accumulation="auto", packing=packing)
    sources = {"colours": 1.0, "chat": 1.0}
    return make_section(
        **{"steps": 5, "schedule": constant(), "batch": batch, "sources": sources, **changes}
    )


def curve(folder):
    text = (folder / "out" / "measurements" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory, dataset):
    place = tmp_path_factory.mktemp("unpacked")
    run(place, model=make_model(experts=("clip",)), dataset=dataset, section=section())
    return curve(place)


@pytest.mark.parametrize("budget", [20, 45, 1000])
def test_packed_and_unpacked_runs_have_the_same_curve(tmp_path, dataset, unpacked, budget):
    model = make_model(experts=("clip",))
    run(tmp_path, model=model, dataset=dataset, section=section(budget))
    for packed, plain in zip(curve(tmp_path), unpacked, strict=True):
        assert packed["loss"] == pytest.approx(plain["loss"], rel=1e-4)
        assert packed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=2e-3)
        for key in ("tokens", "supervised", "flops", "learning_rate"):
            assert packed[key] == plain[key]


class Stopper(Progress):
    """Sends a signal after the second step."""

    def step(self, step, total, **facts):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_packed_run_ends_as_if_never_stopped(tmp_path, dataset):
    (tmp_path / "whole").mkdir()
    whole, _ = run(
        tmp_path / "whole", model=make_model(experts=("clip",)), dataset=dataset,
        section=section(45),
    )  # fmt: skip
    options = {"dataset": dataset, "section": section(45)}
    with pytest.raises(Interrupted):
        run(tmp_path, model=make_model(experts=("clip",)), progress=Stopper("test"), **options)
    resumed, result = run(tmp_path, model=make_model(experts=("clip",)), **options)
    assert result.resumed_step == 2
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


def test_a_pack_too_small_for_a_sample_is_refused_before_a_step(tmp_path, dataset):
    with pytest.raises(UserError) as caught:
        run(tmp_path, model=make_model(experts=("clip",)), dataset=dataset, section=section(12))
    assert str(caught.value) == (
        "batch.packing allows 12 tokens in a pack, but a sample has 17; raise tokens to 17 or "
        "lower max_length."
    )


def with_packing(lines):
    head, tail = TEXT.split("\nsft:\n", 1)
    return f"{head}\nsft:\n{tail.replace(BATCH, BATCH + lines, 1)}"


def test_packing_is_a_key_of_the_batch_and_none_is_its_default():
    packed = parse_recipe(with_packing("    packing:\n      tokens: 2048\n"), "r.yaml")
    assert packed.sft.batch.packing == TokenBudget(tokens=2048)
    assert packed.pretrain.batch.packing is None
    text = slice_json(packed, "sft")
    assert parse_slice(text, TrainSlice).section.batch.packing == TokenBudget(tokens=2048)


def test_a_packed_stage_is_another_stage_and_the_word_none_is_not():
    plain = load_recipe(RECIPE)
    none = parse_recipe(with_packing("    packing: none\n"), "r.yaml")
    packed = parse_recipe(with_packing("    packing:\n      tokens: 2048\n"), "r.yaml")
    assert slice_json(none, "sft") == slice_json(plain, "sft")
    assert slice_json(packed, "sft") != slice_json(plain, "sft")
    assert slice_json(packed, "pretrain") == slice_json(plain, "pretrain")


MISTAKES = [
    ("    packing: 2048\n", "got 2048; allowed are none or a section with the key tokens"),
    (
        "    packing:\n      tokens: 128\n",
        "sft.batch.packing.tokens 128 is less than model.max_length; write 256 or more, or the "
        "longest sample fits in no pack",
    ),
]


@pytest.mark.parametrize(("lines", "expected"), MISTAKES, ids=["a-number", "too-small"])
def test_a_wrong_packing_is_one_sentence(lines, expected):
    with pytest.raises(UserError) as caught:
        parse_recipe(with_packing(lines), "r.yaml")
    assert str(caught.value).endswith(expected)
    assert len(str(caught.value).splitlines()) == 1
