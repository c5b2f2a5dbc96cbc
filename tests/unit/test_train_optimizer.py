"""Groups carry their rates, schedules are functions of the step, state survives by name."""

import pytest
import torch
from torch import nn

from manyeyes.config.recipe import (
    Batch,
    Constant,
    Cosine,
    LearningRate,
    SingleProcess,
    TrainSection,
)
from manyeyes.errors import UserError
from manyeyes.training.optimizer import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    schedule_factor,
    set_learning_rate,
)


def section(**changes):
    values = {
        "train": ("*",),
        "steps": 10,
        "batch": Batch(size=4, per_device=4, accumulation=1),
        "learning_rate": 1e-2,
        "learning_rates": (),
        "schedule": Cosine(kind="cosine", warmup=0.0),
        "weight_decay": 0.1,
        "gradient_clipping": 1.0,
        "precision": "float32",
        "checkpoint_every": 5,
        "sources": {"a": 1.0},
        "engine": SingleProcess(kind="single"),
    }
    return TrainSection(**{**values, **changes})


def make_model():
    torch.manual_seed(0)
    return nn.ModuleDict({"projector": nn.Linear(3, 3), "llm": nn.Linear(3, 3)})


def rates_and_decays(model, optimizer):
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_vectors_are_not_decayed_and_the_first_matching_rate_wins():
    model = make_model()
    rates = (
        LearningRate(modules="llm.weight", learning_rate=1e-4),
        LearningRate(modules="llm.*", learning_rate=1e-5),
    )
    optimizer = build_optimizer(model, section(learning_rates=rates))
    assert rates_and_decays(model, optimizer) == {
        "projector.weight": (1e-2, 0.1),
        "projector.bias": (1e-2, 0.0),
        "llm.weight": (1e-4, 0.1),
        "llm.bias": (1e-5, 0.0),
    }


def test_frozen_parameters_are_not_in_the_optimizer():
    model = make_model()
    model["llm"].requires_grad_(requires_grad=False)
    optimizer = build_optimizer(model, section())
    assert set(rates_and_decays(model, optimizer)) == {"projector.weight", "projector.bias"}


@pytest.mark.parametrize("pattern", ["lm.*", "llm"])
def test_a_rate_for_nothing_that_trains_is_refused(pattern):
    entry = LearningRate(modules=pattern, learning_rate=1e-4)
    with pytest.raises(UserError) as caught:
        build_optimizer(make_model(), section(learning_rates=(entry,)))
    assert str(caught.value) == (
        f"learning_rates: the pattern {pattern!r} matches no parameter; did you mean 'llm.*'? "
        "The model has llm.*, projector.*."
    )


def test_nothing_to_train_is_refused():
    model = make_model().requires_grad_(requires_grad=False)
    with pytest.raises(UserError) as caught:
        build_optimizer(model, section())
    assert str(caught.value) == "train: nothing trains; name at least one part of the model."


SCHEDULES = [
    (Cosine(kind="cosine", warmup=0.0), 0, 10, 1.0),
    (Cosine(kind="cosine", warmup=0.0), 5, 10, 0.5),
    (Cosine(kind="cosine", warmup=0.2), 0, 10, 0.5),
    (Cosine(kind="cosine", warmup=0.2), 1, 10, 1.0),
    (Cosine(kind="cosine", warmup=0.2), 2, 10, 1.0),
    (Cosine(kind="cosine", warmup=0.2), 6, 10, 0.5),
    (Cosine(kind="cosine", warmup=1.0), 9, 10, 1.0),
    (Constant(kind="constant", warmup=0.0), 9, 10, 1.0),
    (Constant(kind="constant", warmup=0.31), 0, 10, 0.25),
    (Constant(kind="constant", warmup=0.31), 4, 10, 1.0),
]


@pytest.mark.parametrize(("schedule", "step", "steps", "factor"), SCHEDULES)
def test_schedule_values(schedule, step, steps, factor):
    assert schedule_factor(schedule, step, steps) == pytest.approx(factor)


@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_every_step_has_a_positive_rate(warmup, steps):
    schedule = Cosine(kind="cosine", warmup=warmup)
    factors = [schedule_factor(schedule, step, steps) for step in range(steps)]
    assert all(0.0 < factor <= 1.0 for factor in factors)


def test_groups_keep_their_ratio_over_the_schedule():
    rates = (LearningRate(modules="llm.*", learning_rate=1e-3),)
    optimizer = build_optimizer(make_model(), section(learning_rates=rates))
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(5e-3)
    assert {group["lr"] for group in optimizer.param_groups} == {5e-3, 5e-4}
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {2.5e-3, 2.5e-4}


def test_restored_optimizer_goes_on_bit_for_bit():
    def steps(model, optimizer, numbers):
        for number in numbers:
            torch.manual_seed(number)
            loss = model["llm"](model["projector"](torch.randn(4, 3))).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    whole = make_model()
    whole_optimizer = build_optimizer(whole, section())
    steps(whole, whole_optimizer, range(6))

    first = make_model()
    first_optimizer = build_optimizer(first, section())
    steps(first, first_optimizer, range(3))
    names = {p: n for n, p in first.named_parameters()}
    saved = {k: v.clone() for k, v in optimizer_tensors(first_optimizer, names).items()}

    second = make_model()
    second.load_state_dict(first.state_dict())
    second_optimizer = build_optimizer(second, section())
    restore_optimizer(second_optimizer, saved, dict(second.named_parameters()))
    steps(second, second_optimizer, range(3, 6))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
