"""Operations follow the formula; what is frozen costs less; no peak means no utilisation."""

from dataclasses import replace

import pytest

from manyeyes.training.flops import (
    ModelCost,
    Trained,
    language_model_flops,
    peak_flops,
    step_flops,
    utilisation,
)

COST = ModelCost(
    block_parameters=100,
    layers=2,
    width=4,
    vocabulary=10,
    projector_parameters=7,
    num_visual_tokens=3,
    encoder_flops={"clip": 1000.0, "sam": 500.0},
)
LANGUAGE = 2 * 100 * 5 + 2 * 2 * 4 * 25
HEAD = 2 * 2 * 10 * 4
PROJECTOR = 2 * 7 * 3


def trained(encoders=(), *, projector=False, language_model=False):
    return Trained(frozenset(encoders), projector, language_model)


CASES = [
    (trained(["clip"], projector=True), 3000 + 500 + 3 * PROJECTOR + 2 * (LANGUAGE + HEAD)),
    (trained(projector=True), 1500 + 3 * PROJECTOR + 2 * (LANGUAGE + HEAD)),
    (
        trained(["clip", "sam"], projector=True, language_model=True),
        3 * (1500 + PROJECTOR + LANGUAGE + HEAD),
    ),
    (trained(["clip"]), 3000 + 500 + 2 * PROJECTOR + 2 * (LANGUAGE + HEAD)),
    (trained(language_model=True), 1500 + PROJECTOR + 3 * (LANGUAGE + HEAD)),
]


@pytest.mark.parametrize(("parts", "expected"), CASES)
def test_one_sample_with_one_picture(parts, expected):
    assert step_flops(COST, parts, [5], num_images=1, num_supervised=2) == expected


def test_what_only_learned_positions_use_is_counted_at_those():
    narrow = replace(COST, learned_only_parameters=7)
    parts = trained(projector=True)
    whole = step_flops(COST, parts, [5, 4], num_images=1, num_supervised=3)
    found = step_flops(narrow, parts, [5, 4], num_images=1, num_supervised=3)
    assert whole - found == 2 * (2 * 7 * (9 - 3))


def test_attention_is_counted_per_sample_and_text_needs_no_vision():
    parts = trained(["clip", "sam"], projector=True, language_model=True)
    assert step_flops(COST, parts, [5, 5], num_images=0, num_supervised=2) == 3 * (
        2 * LANGUAGE + HEAD
    )
    assert language_model_flops(COST, 10) > 2 * language_model_flops(COST, 5)


def test_a_vicuna_7b_forward_agrees_with_the_published_count():
    vicuna = ModelCost(6_476_000_000, 32, 4096, 32_000, 0, 1024, {})
    full_attention = 2 * 2 * 32 * 4096 * 1060**2 / 2
    assert language_model_flops(vicuna, 1060) + full_attention == pytest.approx(14.32e12, rel=0.01)


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("cpu", None)]
)
def test_utilisation_needs_a_known_device(name, peak):
    assert peak_flops(name) == peak
    expected = None if peak is None else pytest.approx(0.5)
    assert utilisation(0.5 * (peak or 1.0), 1.0, name) == expected
    assert utilisation(1.0, 0.0, name) is None
