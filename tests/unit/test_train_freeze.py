"""Patterns name what trains; everything else does not move, and nobody asks it to."""

import pytest
import torch
from torch import nn

from manyeyes.errors import UserError
from manyeyes.training.freeze import apply_trainable, digest_frozen, digest_tensors


def make_model():
    return nn.ModuleDict(
        {
            "encoders": nn.ModuleDict(
                {
                    "clip": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)),
                    "sam": nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)),
                }
            ),
            "projector": nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Dropout(0.1)),
            "llm": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])}),
        }
    )


CASES = [
    (("*",), 12),
    (("projector.*",), 2),
    (("encoders.clip.*", "projector.*"), 4),
    (("*.bias",), 6),
    (("llm.layers.1.weight",), 1),
]


@pytest.mark.parametrize(("patterns", "count"), CASES)
def test_exactly_the_matching_parameters_train(patterns, count):
    model = make_model()
    names = apply_trainable(model, patterns)
    assert len(names) == count
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]


def test_a_later_stage_freezes_what_an_earlier_one_trained():
    model = make_model()
    apply_trainable(model, ["*"])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_trainable(model, ["projector.*"])
    assert not model["llm"]["layers"][0].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_wholly_frozen_modules_are_in_evaluation_mode():
    model = make_model()
    apply_trainable(model, ["projector.*", "llm.*"])
    assert not model["encoders"].training
    assert not model["encoders"]["clip"][1].training
    assert not model["encoders"]["sam"][1].training
    assert model["projector"][2].training
    assert model["llm"].training
    assert model.training


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("projecter.*", "; did you mean 'projector.*'?"),
        ("encoders.clib.*", "; did you mean 'encoders.clip.*'?"),
        ("@@@", "."),
        ("projector", "; did you mean 'projector.*'?"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest(pattern, hint):
    with pytest.raises(UserError) as caught:
        apply_trainable(make_model(), ["llm.*", pattern])
    assert str(caught.value) == (
        f"train: the pattern {pattern!r} matches no parameter{hint} "
        "The model has encoders.*, llm.*, projector.*."
    )


def test_digest_sees_values_names_types_and_shapes():
    one = torch.arange(6.0)
    digests = [
        digest_tensors([("a", one)]),
        digest_tensors([("b", one)]),
        digest_tensors([("a", one.reshape(2, 3))]),
        digest_tensors([("a", one.to(torch.bfloat16))]),
        digest_tensors([("a", one + 1e-6)]),
        digest_tensors([("a", torch.zeros(0))]),
    ]
    assert len(set(digests)) == len(digests)
    assert digest_tensors([("a", one.clone())]) == digests[0]


def test_frozen_digest_ignores_what_trains():
    model = make_model()
    apply_trainable(model, ["projector.*"])
    before = digest_frozen(model)
    with torch.no_grad():
        model["projector"][0].weight.add_(1.0)
    assert digest_frozen(model) == before
    with torch.no_grad():
        model["llm"]["layers"][0].weight.add_(1.0)
    assert digest_frozen(model) != before
