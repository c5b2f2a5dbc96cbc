"""Adapters, weights and moments in few bits, and a teacher are in a plan."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_kit import model_section, write_llama
from torch import nn

from manyeyes.config.recipe import Lora, load_recipe
from manyeyes.plan.activations import Course
from manyeyes.plan.estimate import _cost, _plan_stage
from manyeyes.plan.few_bits import eight_bit_bytes, four_bit_bytes
from manyeyes.plan.gpus import parse_fleet
from manyeyes.plan.lengths import assumed, lengths_of
from manyeyes.plan.memory import Need, Setting, memory_of
from manyeyes.plan.stages import build_on_meta, configs_of, training_stages

RECIPES = Path(__file__).parents[2] / "recipes"
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)

MOMENTS = [(100, 800), (4095, 32_760), (4096, 2 * (4096 + 4 * 16)), (5000, 2 * (5000 + 4 * 20))]


@pytest.mark.parametrize(("numbers", "expected"), MOMENTS)
def test_small_parameters_keep_whole_moments(numbers, expected):
    assert eight_bit_bytes(numbers) == expected


def test_a_weight_takes_the_bits_that_qlora_says():
    """4 bits, and 0.127 for scales that are quantised themselves (arXiv:2305.14314, section 3)."""
    assert 8 * four_bit_bytes(4096 * 4096) / 4096**2 == pytest.approx(4.127, abs=0.001)


@needs_bitsandbytes
@pytest.mark.parametrize("shape", [(64, 64), (96, 352), (33, 7)])
def test_the_bytes_are_those_of_bitsandbytes(shape):
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(shape[1], shape[0], bias=False, quant_type="nf4").to("cpu")
    state = layer.weight.quant_state
    scales = (state.absmax, state.code, state.offset, state.state2.absmax)
    held = sum(tensor.nbytes for tensor in (layer.weight.data, *scales))
    assert four_bit_bytes(shape[0] * shape[1]) == held
    weight = nn.Parameter(torch.ones(shape))
    weight.grad = torch.ones(shape)
    optimizer = bitsandbytes.optim.AdamW8bit([weight])
    optimizer.step()
    kept = {key: value for key, value in optimizer.state[weight].items() if torch.is_tensor(value)}
    tables = ("qmap1", "qmap2")  # one of each for all parameters
    assert eight_bit_bytes(weight.numel()) == sum(
        value.nbytes for key, value in kept.items() if key not in tables
    )


def planned(recipe="tiny/eagle-x5", **changes):
    """Plan the first stage of a recipe, changed; return it and its memory."""
    first = training_stages(load_recipe(RECIPES / f"{recipe}.yaml"))[0]
    stage = replace(first, section=first.section.model_copy(update=changes))
    found = _plan_stage(stage, parse_fleet("A100-40G"), 0.4, None, "")
    return found, found.table[0][1]


def test_adapters_train_beside_a_model_that_does_not():
    lora = Lora(modules=("llm.*.q_proj", "llm.*.down_proj"), rank=4, alpha=8)
    plain, _ = planned(train=("projector.*",))
    stage, memory = planned(train=("projector.*",), lora=lora)
    first = training_stages(load_recipe(RECIPES / "tiny/eagle-x5.yaml"))[0]
    model = build_on_meta(first.model, "float32")
    layers = [
        module
        for name, module in model.llm.named_modules()
        if name.endswith(("q_proj", "down_proj"))
    ]
    adapters = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    assert len(layers) == 2 * model.llm.config.num_hidden_layers
    assert all(type(layer) is nn.Linear for layer in layers)  # the kept model stays as it is
    parts = {part.name: (part.parameters, part.trainable) for part in stage.parts}
    assert parts == {
        **{part.name: (part.parameters, part.trainable) for part in plain.parts},
        "adapters": (adapters, adapters),
    }
    assert stage.trainable == plain.trainable + adapters
    assert (memory.gradients, memory.optimizer) == (4 * stage.trainable, 8 * stage.trainable)
    assert memory.weights == 4 * stage.parameters
    assert stage.flops_per_sample > plain.flops_per_sample


def test_few_bits_change_weights_and_state_and_no_operations():
    lora = {"modules": ("llm.*_proj",), "rank": 4, "alpha": 8}
    whole, before = planned(lora=Lora(**lora))
    small, after = planned(lora=Lora(quantise="nf4", **lora), optimizer="adamw_8bit")
    assert (small.parts, small.flops_by_row) == (whole.parts, whole.flops_by_row)
    assert small.checkpoint_bytes == whole.checkpoint_bytes  # what is merged is plain
    assert after.gradients == before.gradients
    assert after.weights < before.weights
    assert 2 * small.trainable < after.optimizer < before.optimizer
    assert small.state_bytes == 4 * small.trainable + after.optimizer


def test_a_teacher_is_whole_in_every_process_and_in_no_checkpoint():
    stage, memory = planned("tiny/eve")
    parts = {part.name: part.parameters for part in stage.parts}
    teacher = stage.need.teacher
    assert parts["alignment teacher"] == teacher > 0
    assert memory.weights == 4 * sum(parts.values())
    assert stage.checkpoint_bytes == 4 * (sum(parts.values()) - teacher)
    flat = Course.flat(0)
    need = Need(8000, 4000, float32=False, distributed=True, batch=8, supervised=1, piece=1,
                course=flat, recomputed=flat)  # fmt: skip
    for setting in (Setting(8, 3, False, False, 1), Setting(8, 3, True, False, 1)):
        alone, taught = memory_of(need, setting), memory_of(replace(need, teacher=500), setting)
        assert taught.weights - alone.weights == 2 * 500
        assert taught.host - alone.host == 4 * 500


def test_a_sample_costs_its_teachers_look():
    """CLIP ViT-L/14 at 336 px up to its last layer but one: 23 layers over 577 positions."""
    stage = training_stages(load_recipe(RECIPES / "eve-7b.yaml"))[-1]
    layer = 2 * 12 * 1024**2 * 577 + 4 * 577**2 * 1024
    looks = _cost(stage.model, "bfloat16").encoder_flops["alignment.teacher"]
    assert looks == pytest.approx(23 * layer, rel=0.01)


@pytest.mark.parametrize(
    ("precision", "longest", "said"),
    [("float32", 160, ""), ("bfloat16", 192, "; on a CPU padded to multiples of 64")],
)
def test_lengths_are_rounded_up_where_a_cpu_trains_in_bfloat16(precision, longest, said):
    stage = training_stages(load_recipe(RECIPES / "small/eagle-x2-smollm2.yaml"))[-1]
    section = stage.section.model_copy(update={"precision": precision})
    found = lengths_of(replace(stage, section=section), 36, None)
    assert (found.longest, found.longest_on_cpu) == (160, longest)
    assert str(found) == assumed(stage, 36).source + said


def test_assumed_samples_end_where_the_model_does():
    stage = training_stages(load_recipe(RECIPES / "small/eagle-x2-smollm2.yaml"))[-1]
    found = assumed(stage, 36)
    assert [(row.length, row.supervised) for row in found.rows] == [(160, 62), (160, 88)]
    assert found.source.endswith("; cut at 160")
    roomy = replace(stage, model=stage.model.model_copy(update={"max_length": 2048}))
    assert [(row.length, row.supervised) for row in assumed(roomy, 36).rows] == [
        (336, 150),
        (420, 230),
    ]
    assert "cut" not in assumed(roomy, 36).source


def test_a_kept_model_is_that_of_the_files_that_lie_there_now(tmp_path, monkeypatch):
    """The same words in another folder, or in one filled anew, name another model."""
    section = model_section("./llm")

    def width():
        return build_on_meta(section, "float32").llm.config.hidden_size

    for folder, size in (("one", 16), ("two", 32)):
        write_llama(tmp_path / folder / "llm", hidden_size=size)
        monkeypatch.chdir(tmp_path / folder)
        assert width() == size
    write_llama(tmp_path / "two/llm", hidden_size=64)
    assert width() == 64
    assert build_on_meta(section, "float32") is build_on_meta(section, "float32")


def test_what_a_model_is_kept_for_changes_with_what_tells_how_it_is_built(tmp_path, monkeypatch):
    """A folder may have a GGUF file in place of a config; of the hub the commit counts."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "models--some--model"
    for commit in ("1" * 40, "2" * 40):
        (place / "snapshots" / commit).mkdir(parents=True)
    (place / "refs").mkdir()
    (tmp_path / "llm").mkdir()
    of_hub, of_folder = model_section("some/model"), model_section("./llm")

    def kept():
        return configs_of(of_hub), configs_of(of_folder)

    before = kept()
    (place / "refs/main").write_text("1" * 40)
    (tmp_path / "llm/one.gguf").write_bytes(b"1")
    between = kept()
    (place / "refs/main").write_text("2" * 40)
    (tmp_path / "llm/one.gguf").write_bytes(b"12")
    for values in zip(before, between, kept(), strict=True):
        assert len(set(values)) == 3
