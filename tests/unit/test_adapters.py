"""Adapters train beside frozen weights; what a stage hands on is the merged model."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from training_kit import constant, deepspeed, make_dataset, make_model, make_section, run

from manyeyes.config.recipe import Lora
from manyeyes.errors import UserError
from manyeyes.model.saving import save_model
from manyeyes.training import adapters as adapters_module
from manyeyes.training.adapters import attach
from manyeyes.training.cost import cost_of, trained_parts
from manyeyes.training.freeze import apply_trainable, digest_tensors

has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None
QUERIES = ("llm.*.q_proj", "llm.*.v_proj")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("adapters") / "data")


def small(dropout=0.0):
    return make_model(experts=("clip",), dropout=dropout)


def section(modules=QUERIES, **changes):
    lora = {"rank": 4, "alpha": 8, **changes.pop("lora", {})}
    values = {"train": ("projector.*",), "steps": 4, "schedule": constant(), "learning_rate": 1e-2}
    return make_section(**{**values, **changes}, lora=Lora(modules=modules, **lora))


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_only_adapters_and_what_train_names_learn_and_the_result_is_a_plain_model(
    tmp_path, dataset
):
    before = weights(small())
    model, result = run(tmp_path, model=small(), dataset=dataset, section=section())
    after = weights(model)
    assert list(after) == list(before)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    layers = [f"llm.model.layers.{i}.self_attn.{kind}_proj.weight" for i in (0, 1) for kind in "qv"]
    assert moved == {*layers, *(name for name in before if name.startswith("projector."))}
    # Two layers of two maps 32 -> 32, rank 4, and the projector.
    adapters = 2 * 2 * 2 * 4 * 32
    assert result.num_parameters == adapters + sum(p.numel() for p in model.projector.parameters())
    assert not hasattr(model, "peft_config")


def test_the_adapter_beside_it_gives_the_same_model_in_peft(tmp_path, dataset):
    from peft import PeftModel

    merged, _ = run(tmp_path, model=small(), dataset=dataset, section=section())
    folder = tmp_path / "out" / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (4, 8, True)
    layers = [f"llm.model.layers.{i}.self_attn.{kind}_proj" for i in (0, 1) for kind in "qv"]
    assert config["target_modules"] == layers  # in the model's order: equal runs, equal bytes
    plain = small()
    plain.projector.load_state_dict(merged.projector.state_dict())
    loaded = PeftModel.from_pretrained(plain, str(folder)).eval()
    ids = torch.randint(3, 10, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = merged.eval()(ids).logits
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(small().eval()(ids).logits, expected, atol=1e-4)


def test_a_killed_run_with_adapters_ends_as_one_in_one_go(tmp_path, dataset):
    settings = section(steps=6, checkpoint_every=2, lora={"dropout": 0.2})
    whole, _ = run(tmp_path / "whole", model=small(0.1), dataset=dataset, section=settings)
    run(tmp_path / "cut", model=small(0.1), dataset=dataset, section=settings)
    newest = tmp_path / "cut" / "out" / "state" / "step-6"
    assert {name for name in load_file(newest / "weights.safetensors") if "lora" in name}
    newest.rename(tmp_path / "gone")
    again, result = run(tmp_path / "cut", model=small(0.1), dataset=dataset, section=settings)
    assert result.resumed_step == 4
    assert digest_tensors(again.named_parameters()) == digest_tensors(whole.named_parameters())


def test_the_merged_model_is_saved_and_loaded_as_any_other(tmp_path, dataset):
    from manyeyes.model.processor import Processor
    from manyeyes.model.vlm import VisionLanguageModel

    class Tokens:
        def save_pretrained(self, folder):
            pass

    model, _ = run(tmp_path, model=small(), dataset=dataset, section=section())
    save_model(model, Tokens(), Processor(canvas_size=32), tmp_path / "saved")
    again = VisionLanguageModel.from_pretrained(tmp_path / "saved")
    assert digest_tensors(again.named_parameters()) == digest_tensors(model.named_parameters())


REFUSED = [
    (
        section(("llm.*.query",)),
        "lora.modules: the pattern 'llm.*.query' matches no linear layer. The model has "
        "encoders.*.k_proj, encoders.*.v_proj, encoders.*.q_proj, encoders.*.out_proj, "
        "encoders.*.fc1, encoders.*.fc2, llm.*.q_proj, llm.*.k_proj, llm.*.v_proj, llm.*.o_proj, "
        "llm.*.gate_proj, llm.*.up_proj, llm.*.down_proj, llm.lm_head.",
    ),
    (
        section(train=("llm.model.layers.0.*",)),
        "lora.modules: llm.model.layers.0.self_attn.q_proj gets an adapter, so its weight must be "
        "frozen, but a pattern of train matches it; leave it out of one of the two.",
    ),
]


@pytest.mark.parametrize(("settings", "text"), REFUSED, ids=["no-layer", "trains-anyway"])
def test_layers_that_cannot_have_an_adapter_are_refused(settings, text):
    model = small()
    apply_trainable(model, settings.train)
    with pytest.raises(UserError) as caught:
        attach(model, settings, 0)
    assert str(caught.value) == text


def test_a_head_that_is_the_embedding_table_has_no_adapter():
    model = small()
    model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
    apply_trainable(model, ("projector.*",))
    with pytest.raises(UserError) as caught:
        attach(model, section(("llm.lm_head",)), 0)
    assert str(caught.value) == (
        "lora.modules: llm.lm_head shares its weight with the embedding table and cannot have an "
        "adapter; leave it out."
    )


def test_a_weight_under_an_adapter_is_counted_as_frozen():
    model = small()
    apply_trainable(model, ("projector.*",))
    attach(model, section(), 0)
    parts = trained_parts(model)
    assert (parts.projector, parts.language_model) == (True, False)


@pytest.mark.skipif(not has_bitsandbytes, reason="bitsandbytes is not installed")
def test_weights_in_four_bits_cost_what_whole_ones_do():
    costs = []
    for quantise in ("none", "nf4"):
        model = small()
        apply_trainable(model, ("projector.*",))
        attach(model, section(lora={"quantise": quantise}), 0)
        costs.append(cost_of(model, 32).block_parameters)
    assert costs[0] == costs[1]


MISSING = [
    ("optimizer: adamw_8bit", "optimizer: adamw", {"optimizer": "adamw_8bit"}),
    ("lora.quantise: nf4", "quantise: none", {"lora": {"quantise": "nf4"}}),
]


@pytest.mark.parametrize(("key", "otherwise", "changes"), MISSING, ids=["adamw_8bit", "nf4"])
def test_without_bitsandbytes_one_sentence_says_what_to_do(
    tmp_path, dataset, monkeypatch, key, otherwise, changes
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        adapters_module.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest),
    )
    with pytest.raises(UserError) as caught:
        run(tmp_path, model=small(), dataset=dataset, section=section(**changes))
    assert str(caught.value) == (
        f"{key} needs the package bitsandbytes, which is not installed: install it "
        f"(pip install bitsandbytes), or write {otherwise}."
    )


UNFIT = [
    ({"optimizer": "adamw_8bit"}, "optimizer adamw_8bit needs engine single; deepspeed has adamw"),
    ({"lora": {"quantise": "nf4"}}, "lora.quantise nf4 needs engine single; deepspeed has none"),
]


@pytest.mark.parametrize(("changes", "text"), UNFIT, ids=["adamw_8bit", "nf4"])
def test_what_deepspeed_does_not_have_is_refused_with_the_recipe(changes, text):
    with pytest.raises(ValueError, match=text):
        section(engine=deepspeed(2), **changes)


@pytest.mark.skipif(not has_bitsandbytes, reason="bitsandbytes is not installed")
def test_four_bit_weights_train_resume_and_come_back_plain(tmp_path, dataset):
    settings = section(steps=4, checkpoint_every=2, lora={"quantise": "nf4"})
    before = weights(small())
    whole, _ = run(tmp_path / "whole", model=small(), dataset=dataset, section=settings)
    run(tmp_path / "cut", model=small(), dataset=dataset, section=settings)
    (tmp_path / "cut" / "out" / "state" / "step-4").rename(tmp_path / "gone")
    again, result = run(tmp_path / "cut", model=small(), dataset=dataset, section=settings)
    assert result.resumed_step == 2
    assert digest_tensors(again.named_parameters()) == digest_tensors(whole.named_parameters())
    after = weights(whole)
    assert {name: (v.shape, v.dtype) for name, v in after.items()} == {
        name: (v.shape, v.dtype) for name, v in before.items()
    }
    assert torch.equal(
        after["llm.model.layers.0.mlp.up_proj.weight"],
        before["llm.model.layers.0.mlp.up_proj.weight"],
    )


@pytest.mark.skipif(not has_bitsandbytes, reason="bitsandbytes is not installed")
def test_eight_bit_moments_resume_exactly(tmp_path, dataset):
    settings = make_section(
        steps=4, checkpoint_every=2, optimizer="adamw_8bit", train=("projector.*", "encoders.*")
    )
    whole, _ = run(tmp_path / "whole", model=small(), dataset=dataset, section=settings)
    state = load_file(tmp_path / "whole" / "out" / "state" / "step-4" / "optimizer.safetensors")
    assert {v.dtype for k, v in state.items() if k.startswith("state1/")} >= {torch.uint8}
    run(tmp_path / "cut", model=small(), dataset=dataset, section=settings)
    (tmp_path / "cut" / "out" / "state" / "step-4").rename(tmp_path / "gone")
    again, result = run(tmp_path / "cut", model=small(), dataset=dataset, section=settings)
    assert result.resumed_step == 2
    assert digest_tensors(again.named_parameters()) == digest_tensors(whole.named_parameters())
