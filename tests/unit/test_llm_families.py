"""Each family of language models trains a step, saves, loads and answers, from a tiny random config."""

import pytest
from model_kit import model_section, pictures
from tokenizer_kit import FAMILIES, make_tokenizer
from training_kit import make_section

from manyeyes.config.recipe import LanguageModelSection
from manyeyes.data.dataset.sample import ImageRef, Sample, Turn
from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN, encode, end_ids
from manyeyes.errors import UserError

# family: (transformers' configuration class, tokenizer, template, what differs from a plain one)
MODELS = {
    "vicuna": ("LlamaConfig", "llama_2", "vicuna_v1", {}),
    "llama-3": ("LlamaConfig", "llama_3", "llama_3", {"rope_theta": 500000.0}),
    "gemma": (
        "GemmaConfig",
        "gemma",
        "gemma",
        {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "mixtral": ("MixtralConfig", "llama_2", "mistral_instruct", {"num_local_experts": 4}),
    "yi": ("LlamaConfig", "yi", "chatml_yi", {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2Config", "qwen", "qwen", {"tie_word_embeddings": True}),
    "phi-3": ("Phi3Config", "phi_3", "phi_3", {}),
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}


def write(folder, family, **changes):
    """Write a tiny language model of a family with its tokenizer; return the folder as text."""
    import torch
    import transformers

    name, tokenizer_name, _, special = MODELS[family]
    tokenizer = make_tokenizer(tokenizer_name)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = getattr(transformers, name)(**{**SIZES, **ids, **special, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def build(folder, family, **llm):
    from manyeyes.model.vlm import VisionLanguageModel

    llm = LanguageModelSection(weights=write(folder, family), template=MODELS[family][2], **llm)
    section = model_section(llm.weights, names=("clip",), max_length=512).model_copy(
        update={"llm": llm}
    )
    return VisionLanguageModel.from_recipe(section, seed=0)


def batch_of(family, tokenizer):
    """Return ids, labels and mask (2, N) of two samples of different length, one with a picture."""
    import torch

    ref = ImageRef("i", "s", 0, 1, "0", 8, 8)
    rows = []
    for texts in (("<image>\nHow many?", "four"), ("What does the sign say?", "stop, now!")):
        turns = (Turn("human", texts[0]), Turn("gpt", texts[1]))
        images = (ref,) * texts[0].count("<image>")
        sample = Sample("s", "train", "t", "", turns, images, (), "src", "CC0-1.0", ())
        rows.append(encode(sample, tokenizer, MODELS[family][2], 512, 16))
    width = max(len(row.input_ids) for row in rows)
    ids, labels = torch.zeros(2, width, dtype=torch.long), torch.full((2, width), IGNORED)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row.input_ids)] = torch.tensor(row.input_ids)
        labels[number, : len(row.labels)] = torch.tensor(row.labels)
        mask[number, : len(row.input_ids)] = 1
    return ids, labels, mask


@pytest.mark.parametrize("family", MODELS)
def test_a_family_trains_saves_loads_and_answers(tmp_path, family):
    import torch

    from manyeyes.model.processor import Processor
    from manyeyes.model.saving import save_model
    from manyeyes.model.transformer import load_checkpoint_tokenizer, stop_at, stop_ids
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.training.freeze import apply_trainable
    from manyeyes.training.optimizer import build_optimizer

    model = build(tmp_path / "llm", family)
    tokenizer = make_tokenizer(MODELS[family][1])
    ids, labels, mask = batch_of(family, tokenizer)
    stop_at(model.llm, end_ids(tokenizer, MODELS[family][2]))
    apply_trainable(model, ["projector.*", "llm.*"])
    optimizer = build_optimizer(model, make_section(learning_rate=3e-3))
    losses = []
    for _ in range(4):
        output = model(ids, mask, labels, pictures(1))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.loss))
    assert losses[-1] < losses[0]

    save_model(model, tokenizer, Processor(canvas_size=128), tmp_path / "saved")
    again = VisionLanguageModel.from_pretrained(tmp_path / "saved")
    load_checkpoint_tokenizer(tmp_path / "saved", again.llm)
    assert stop_ids(again.llm) == stop_ids(model.llm)
    assert set(end_ids(tokenizer, MODELS[family][2])) <= set(stop_ids(again.llm))
    model.eval()
    with torch.no_grad():
        first = model(ids, mask, None, pictures(1)).logits
        assert torch.equal(again(ids, mask, None, pictures(1)).logits, first)
    prompt = ids[:1, : int((labels[0] != IGNORED).nonzero()[0])]
    made = again.generate(prompt, None, pictures(1), max_new_tokens=4)
    assert made.shape[1] <= 4
    # One token is what the whole forward pass finds most likely.
    place = int(prompt.shape[1]) - 1 + 16 - 1
    assert int(made[0, 0]) == int(first[0, place].argmax())


@pytest.mark.parametrize("family", ["gemma", "qwen2"])
def test_tied_embeddings_stay_one_tensor(tmp_path, family):
    model = build(tmp_path / "llm", family)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_gemma_sees_text_and_pictures_times_the_root_of_its_width(tmp_path):
    """As with the transformers version of MGM's release, whose decoder scales whatever comes in."""
    import torch

    model = build(tmp_path / "llm", "gemma")
    visual = model.project(model.see(pictures(1)))
    plain = model.fusion.arrange(model.projector(model.fusion(model.see(pictures(1)))))
    torch.testing.assert_close(visual, plain * 32**0.5)
    ids = torch.tensor([[5, IMAGE_TOKEN, 6]])
    spliced = model.splice_inputs(ids, visual, None, None, side="right")
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(spliced.embeddings[0, 0], table[5] * 32**0.5)
    torch.testing.assert_close(spliced.embeddings[0, 1:17], visual[0])


def test_the_llm_sees_the_ids_of_text_as_it_does_alone(tmp_path):
    import torch

    model = build(tmp_path / "llm", "gemma").eval()
    ids = torch.tensor([[2, 7, 9, 30, 11]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, model.llm(ids).logits)


@pytest.mark.parametrize(("weight", "expected"), [(None, 0.001), (0.5, 0.5), (0.0, 0.0)])
def test_the_router_is_balanced_over_real_tokens(tmp_path, weight, expected):
    """The loss is the mean over answers plus transformers' balance of each real token's experts."""
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    from manyeyes.training.freeze import apply_trainable

    model = build(tmp_path / "llm", "mixtral", router_loss=weight)
    ids, labels, mask = batch_of("mixtral", make_tokenizer("llama_2"))
    apply_trainable(model, ["projector.*"])
    without = model(ids, mask, labels, pictures(1)).loss
    apply_trainable(model, ["projector.*", "llm.*"])
    output = model(ids, mask, labels, pictures(1))
    spliced = model.splice_inputs(
        ids, model.project(model.see(pictures(1))), mask, labels, side="right"
    )
    seen = model.llm.model(
        inputs_embeds=spliced.embeddings, use_cache=False, output_router_logits=True
    )
    rows = spliced.attention_mask.flatten()
    real = tuple(logits[rows] for logits in seen.router_logits)
    balance = load_balancing_loss_func(real, 4, 2)
    torch.testing.assert_close(output.loss, without + expected * balance)
    output.loss.backward()
    assert model.llm.model.layers[0].mlp.gate.weight.grad is not None


def test_a_model_without_a_router_has_no_router_loss(tmp_path):
    with pytest.raises(UserError) as error:
        build(tmp_path / "llm", "vicuna", router_loss=0.02)
    assert str(error.value) == (
        "model.llm.router_loss is 0.02, but a language model of kind 'llama' has no router: "
        "leave the key out."
    )


def test_the_router_weight_is_saved_with_the_model(tmp_path):
    from manyeyes.model.processor import Processor
    from manyeyes.model.saving import save_model
    from manyeyes.model.vlm import VisionLanguageModel

    model = build(tmp_path / "llm", "mixtral", router_loss=0.3)
    save_model(model, make_tokenizer("llama_2"), Processor(canvas_size=128), tmp_path / "saved")
    again = VisionLanguageModel.from_pretrained(tmp_path / "saved")
    assert again.config.text_config.router_aux_loss_coef == 0.3


def test_every_family_of_tokenizers_is_used():
    assert {row[1] for row in MODELS.values()} | {"smollm2"} == set(FAMILIES)
