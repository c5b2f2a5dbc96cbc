"""The last layer at learned positions alone trains as the whole layer does."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from manyeyes.model.last_layer import last_layer_at, single_position_parts
from manyeyes.model.loss import Learned, supervised_loss
from manyeyes.training.recompute import blocks_of

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "pad_token_id": 0,
}
KINDS = {  # kind of language model, with how many parts of its last layer are left out
    "llama": 3,
    "gemma": 3,
    "qwen2": 3,
    "mistral": 3,
    "phi3": 2,
    "mixtral": 0,
}
LABELS = torch.tensor([[-100, -100, 5, 6, -100, 7], [-100, 8, -100, -100, -100, -100]])


def language_model(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES))
    return model.train()


def step(model, *, narrow, labels=LABELS, watch=None):
    """Return the loss, the gradient of the embeddings, and those of all weights."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(2, 6, 16, generator=generator).requires_grad_()
    learned = Learned.of(labels, torch.device("cpu"))
    decoder = model.get_decoder()
    seen = []
    handle = None
    if watch is not None:
        part = dict(decoder.layers[-1].named_modules())[watch]
        handle = part.register_forward_hook(lambda _m, _i, output: seen.append(output.shape[:-1]))
    with last_layer_at(decoder, learned.places_K if narrow else None):
        hidden = decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    if handle is not None:
        handle.remove()
    loss, _ = supervised_loss(hidden, learned, model.get_output_embeddings(), 40)
    model.zero_grad()
    loss.backward()
    weights = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), embeddings.grad, weights, seen


@pytest.mark.parametrize(("kind", "num_parts"), KINDS.items(), ids=list(KINDS))
def test_loss_and_gradients_are_those_of_the_whole_layer(kind, num_parts):
    model = language_model(kind)
    assert len(single_position_parts(model.get_decoder())) == num_parts
    loss, embeddings, weights, _ = step(model, narrow=True)
    whole_loss, whole_embeddings, whole_weights, _ = step(model, narrow=False)
    torch.testing.assert_close(loss, whole_loss)
    torch.testing.assert_close(embeddings, whole_embeddings)
    assert weights.keys() == whole_weights.keys()
    for name, gradient in weights.items():
        torch.testing.assert_close(gradient, whole_weights[name], msg=name)


@pytest.mark.parametrize("part", ["mlp.gate_proj", "mlp.down_proj"])
def test_the_feed_forward_network_sees_learned_positions_only(part):
    *_, seen = step(language_model("llama"), narrow=True, watch=part)
    assert seen == [(1, 4)]
    *_, seen = step(language_model("llama"), narrow=False, watch=part)
    assert seen == [(2, 6)]


def test_where_nothing_is_learned_every_weight_still_gets_a_gradient():
    model = language_model("llama")
    nothing = torch.full_like(LABELS, -100)
    loss, embeddings, weights, _ = step(model, narrow=True, labels=nothing)
    assert loss == 0.0
    assert not embeddings.any()
    trained = {name for name, _ in model.named_parameters()} - {"model.embed_tokens.weight"}
    assert weights.keys() == trained
    assert not any(gradient.any() for gradient in weights.values())


def test_afterwards_the_layer_is_what_it_was():
    model = language_model("llama")
    decoder = model.get_decoder()
    with pytest.raises(RuntimeError, match="stopped"), last_layer_at(decoder, torch.arange(2)):
        raise RuntimeError("stopped")
    for module in blocks_of(decoder)[-1].modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
