"""In a packed row every document attends to itself only, in every class of language model."""

import pytest
import torch
from torch.nn import functional

from manyeyes.errors import UserError
from manyeyes.model import documents
from manyeyes.model.documents import IMPLEMENTATION, packed_arguments, position_ids

LENGTHS = [11, 17, 1, 5]
WIDTH = 32
COMMON = {
    "vocab_size": 40,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": {"model_type": "llama"},
    "gemma": {"model_type": "gemma", "head_dim": 8},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
    "mixtral-window": {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": 6},
    "mistral-window": {"model_type": "mistral", "sliding_window": 6},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "phi3": {"model_type": "phi3"},
    "phi3-window": {"model_type": "phi3", "sliding_window": 6},
}


def build(family="llama", **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {**COMMON, **FAMILIES[family], **changes}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        )


def row(lengths=LENGTHS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, sum(lengths), WIDTH, generator=generator)


def run(llm, embeddings, **arguments):
    options = {"use_cache": False, **arguments}
    return llm.get_decoder()(inputs_embeds=embeddings, **options).last_hidden_state


def run_packed(llm, embeddings, lengths=LENGTHS):
    return run(llm, embeddings, **packed_arguments(llm, lengths, embeddings.device))


def run_apart(llm, embeddings, lengths=LENGTHS):
    return torch.cat([run(llm, piece) for piece in embeddings.split(lengths, 1)], 1)


def gradients(llm, hidden):
    llm.zero_grad()
    (hidden.square() * torch.linspace(0.1, 1.0, WIDTH)).sum().backward()
    found = [p.grad.flatten() for p in llm.get_decoder().parameters() if p.grad is not None]
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_is_its_documents_one_by_one(family):
    llm, embeddings = build(family), row()
    apart = run_apart(llm, embeddings)
    gradient_apart = gradients(llm, apart)
    packed = run_packed(llm, embeddings)
    assert torch.allclose(packed, apart, atol=5e-6)
    gradient = gradients(llm, packed)
    assert functional.cosine_similarity(gradient, gradient_apart, dim=0) > 0.999999
    assert torch.allclose(gradient.norm(), gradient_apart.norm(), rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_document_sees_another(family):
    llm, embeddings = build(family), row()
    changed = embeddings.clone()
    changed[:, 11:28] += 3.0
    with torch.no_grad():
        before, after = run_packed(llm, embeddings), run_packed(llm, changed)
    # An expert of Mixtral multiplies all its positions at once: how many decides the last bit.
    tolerance = 2e-6 if "mixtral" in family else 0.0
    assert torch.allclose(before[:, :11], after[:, :11], rtol=0.0, atol=tolerance)
    assert torch.allclose(before[:, 28:], after[:, 28:], rtol=0.0, atol=tolerance)
    assert not torch.allclose(before[:, 11:28], after[:, 11:28], atol=0.1)


@pytest.mark.parametrize("family", ["llama", "mixtral-window"])
def test_no_attention_is_larger_than_a_document(monkeypatch, family):
    calls = []
    true = documents.sdpa_attention_forward

    def recorded(module, query, key, value, mask, **options):
        calls.append((query.shape[2], None if mask is None else tuple(mask.shape[2:])))
        return true(module, query, key, value, mask, **options)

    monkeypatch.setattr(documents, "sdpa_attention_forward", recorded)
    run_packed(build(family), row())
    wide = {size: (size, size) if size > 6 and family != "llama" else None for size in LENGTHS}
    assert calls == [(size, wide[size]) for size in LENGTHS] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches_and_generation_stay_what_they_were(family):
    llm, batch = build(family), row([18]).view(2, 9, WIDTH)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0

    def outputs():
        with torch.no_grad():
            padded = run(llm, batch, attention_mask=mask)[:, 3:]
            written = llm.generate(
                inputs_embeds=batch, attention_mask=mask, max_new_tokens=6, do_sample=False
            )
            return padded, run(llm, batch), written

    before = outputs()
    run_packed(llm, row())
    assert llm.config._attn_implementation == IMPLEMENTATION
    assert all(torch.equal(x, y) for x, y in zip(before, outputs(), strict=True))


def test_recomputation_sees_the_documents_too():
    llm, embeddings = build(), row()
    plain = gradients(llm, run_packed(llm, embeddings))
    llm.train()
    llm.gradient_checkpointing_enable({"use_reentrant": False})
    assert torch.allclose(gradients(llm, run_packed(llm, embeddings)), plain, atol=1e-6)


@pytest.mark.parametrize(
    ("use_cache", "masked", "isolates"),
    [(False, False, True), (False, True, False), (True, False, False), (True, True, False)],
)
def test_restarted_positions_alone_isolate_only_without_cache_and_mask(use_cache, masked, isolates):
    llm, embeddings = build(), row()
    mask = torch.ones(1, sum(LENGTHS), dtype=torch.long) if masked else None
    with torch.no_grad():
        apart = run_apart(llm, embeddings)
        reset = run(
            llm,
            embeddings,
            position_ids=position_ids(LENGTHS, embeddings.device),
            attention_mask=mask,
            use_cache=use_cache,
        )
    assert torch.allclose(reset, apart, atol=5e-6) == isolates
    assert ((reset - apart).abs().max() > 0.1) == (not isolates)


def test_positions_count_from_zero_in_each_document():
    assert position_ids([3, 1, 2], torch.device("cpu")).tolist() == [[0, 1, 2, 0, 0, 1]]


def test_flash_attention_gets_the_bounds_of_the_documents():
    llm = build()
    llm.config._attn_implementation_internal = "flash_attention_2"
    arguments = packed_arguments(llm, [3, 1, 2], torch.device("cpu"))
    assert llm.config._attn_implementation == "flash_attention_2"
    assert arguments.pop("position_ids").tolist() == [[0, 1, 2, 0, 0, 1]]
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        ends = arguments.pop(name)
        assert (ends.tolist(), ends.dtype) == ([0, 3, 4, 6], torch.int32)
    assert arguments == {"max_length_q": 3, "max_length_k": 3}


def test_a_model_with_a_state_along_the_row_is_refused():
    llm = build("qwen2")
    llm.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(UserError) as caught:
        run_packed(llm, row())
    assert str(caught.value) == (
        "batch.packing does not fit language models of kind 'qwen2': through its layers of kind "
        "linear_attention the samples of a pack would see each other. Leave packing out."
    )
