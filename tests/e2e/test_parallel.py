"""Training in two processes against training in one: the same losses, states and weights.

Everything is trained by two starts of ``parallel_kit``; the tests look at what is there.
"""

import json

import pytest
from parallel_kit import finish, rows
from safetensors.torch import load_file
from training_kit import make_dataset, make_model

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("parallel")]

MIXED = {"steps": 2, "sources": {"colours": 1.0, "chat": 2.0}, "batch": (16, 2)}
PROJECTOR = {**MIXED, "steps": 2, "train": ["projector.*"]}
SPLIT = {"steps": 4, "every": 2, "batch": (4, 2), "dropout": 0.1}
LORA = {**MIXED, "train": ["projector.*"], "lora": ["llm.*.q_proj", "llm.*.up_proj"]}
KEPT = {**PROJECTOR, "feature_cache": "on"}
BF16 = {"zero": 3, "precision": "bfloat16", **SPLIT}
TWO = [
    *[{"name": f"zero-{zero}", "zero": zero, **MIXED} for zero in range(4)],
    {"name": "offload-3", "zero": 3, "offload": "cpu", **MIXED},
    {"name": "projector-3", "zero": 3, **PROJECTOR},
    {"name": "bf16-3", **BF16},
    {"name": "again-bf16-3", "after": "bf16-3", **BF16},
    {"name": "recomputed-3", "zero": 3, "recompute": "all", **MIXED},
    {"name": "lora-3", "zero": 3, "recompute": "llm", **LORA},
    {"name": "projector-2", "zero": 2, **PROJECTOR},
    {"name": "kept-cold", "zero": 2, **KEPT},
    {"name": "kept-warm", "zero": 2, **KEPT},
    {"name": "whole", "zero": 2, **SPLIT},
    {"name": "stopped", "zero": 2, "stop": 1, "expect": "stop", **SPLIT},
    {"name": "stopped", "zero": 2, **SPLIT},
    {"name": "poisoned", "zero": 2, "poison": True, "expect": "nan", **MIXED},
    {"name": "undivided", "zero": 2, "expect": "batch", "batch": (8, 2), "accumulation": 4},
    {"name": "single", "expect": "one process"},
]
ONE = [
    {"name": "one", **MIXED},
    {"name": "one-zero-2", "zero": 2, **MIXED},
    {"name": "one-projector-3", "zero": 3, **PROJECTOR},
    {"name": "one-lora", **LORA},
    {"name": "continued", "after": "whole", "zero": 2, **SPLIT},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all results."""
    place = tmp_path_factory.mktemp("parallel")
    make_dataset(place / "data")
    finish(place, TWO)
    finish(place, ONE, processes=0)
    return place


def losses(folder, name):
    return [row["loss"] for row in rows(folder, name)]


def norms(folder, name):
    return [row["grad_norm"] for row in rows(folder, name)]


SAME = [
    *[(name, "one") for name in ("zero-0", "zero-1", "zero-2", "zero-3", "offload-3")],
    ("one-zero-2", "one"),
    ("projector-3", "one-projector-3"),
    ("recomputed-3", "one"),
    ("lora-3", "one-lora"),
]


@pytest.mark.parametrize(("name", "reference"), SAME)
def test_losses_and_gradients_do_not_depend_on_processes_or_what_they_share(
    folder, name, reference
):
    assert losses(folder, name) == pytest.approx(losses(folder, reference), rel=2e-5)
    assert norms(folder, name) == pytest.approx(norms(folder, reference), rel=2e-3)


def test_adapters_that_two_processes_shared_out_are_merged_and_kept(folder):
    merged = load_file(folder / "lora-3" / "final.safetensors")
    assert set(merged) == set(load_file(folder / "one" / "final.safetensors"))
    assert (folder / "lora-3" / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_processes_share_kept_features_and_get_the_same_bits(folder):
    first = (folder / "projector-2" / "final.safetensors").read_bytes()
    for name in ("kept-cold", "kept-warm"):
        assert losses(folder, name) == losses(folder, "projector-2")
        assert (folder / name / "final.safetensors").read_bytes() == first
    read = [
        sum(row["pictures_read"] for row in rows(folder, f"kept-{n}")) for n in ("cold", "warm")
    ]
    assert read[0] < read[1]


def test_bfloat16_stays_near_float32(folder):
    assert losses(folder, "bf16-3") == pytest.approx(losses(folder, "whole"), rel=1e-2)


@pytest.mark.parametrize("name", ["zero-3", "offload-3", "bf16-3"])
def test_shared_out_weights_come_back_whole_in_float32(folder, name):
    weights, reference = (
        load_file(folder / which / "final.safetensors") for which in (name, "one")
    )
    assert {key: (value.shape, value.dtype) for key, value in weights.items()} == {
        key: (value.shape, value.dtype) for key, value in reference.items()
    }


def test_what_is_frozen_keeps_its_bytes_and_the_rest_does_not(folder):
    trained = load_file(folder / "projector-3" / "final.safetensors")
    before = dict(make_model(experts=["clip"]).named_parameters())
    kept = {key for key, value in trained.items() if value.equal(before[key])}
    assert {key for key in trained if not key.startswith("projector.")} == kept


@pytest.mark.parametrize("name", ["bf16-3"])
def test_a_state_is_continued_bit_for_bit(folder, name):
    assert losses(folder, f"again-{name}") == losses(folder, name)
    first = (folder / name / "final.safetensors").read_bytes()
    assert (folder / f"again-{name}" / "final.safetensors").read_bytes() == first


def test_a_signal_to_one_process_stops_all_and_the_same_call_continues(folder):
    told = [
        json.loads((folder / place / "stopped" / "error.json").read_text())
        for place in ("", "process-1")
    ]
    text = "after step 2 of 4; the state is saved and the same command continues from there."
    assert told == [
        ["Interrupted", 75, f"Stopped by a signal {text}"],
        ["Followed", 75, f"Stopped by SIGTERM {text}"],
    ]
    assert losses(folder, "stopped") == losses(folder, "whole")
    whole = (folder / "whole" / "final.safetensors").read_bytes()
    assert (folder / "stopped" / "final.safetensors").read_bytes() == whole


def test_one_process_continues_what_two_began(folder):
    assert losses(folder, "continued") == pytest.approx(losses(folder, "whole"), rel=2e-5)
    assert losses(folder, "continued")[:2] == losses(folder, "whole")[:2]


def test_a_loss_that_is_not_finite_ends_all_and_keeps_batch_and_state(folder):
    kept = folder / "poisoned" / "out" / "measurements"
    failed = json.loads((kept / "failed-step.json").read_text())
    kind, code, text = json.loads((folder / "poisoned" / "error.json").read_text())
    assert (kind, code) == ("ManyeyesError", 1)
    assert text.startswith("The loss became nan at step 1 on the samples ")
    assert failed["step"] == 1
    assert failed["samples"]
    assert list((kept / "failed-step").glob("batch-*.safetensors"))
    assert (kept / "failed-step" / "state" / "step-0" / "weights.safetensors").is_file()
    assert not (folder / "poisoned" / "out" / "state").exists()


REFUSED = [
    (
        "undivided",
        "batch: per_device 2 x accumulation 4 x 2 processes is 16, not size 8; size 16, "
        "accumulation 2 or 1 process would fit.",
    ),
    (
        "single",
        "engine: single trains in one process, but 2 were started; start one, or write kind: "
        "deepspeed.",
    ),
]


@pytest.mark.parametrize(("name", "text"), REFUSED)
def test_what_cannot_be_divided_is_refused(folder, name, text):
    assert json.loads((folder / name / "error.json").read_text()) == ["UserError", 2, text]
