"""Every template against its family's own chat template: the same ids, and answers alone learned."""

from functools import cache

import pytest
from tokenizer_kit import IMAGE, make_tokenizer

from manyeyes.data.dataset.sample import ImageRef, Sample, Turn
from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN, encode, end_ids, prompt
from manyeyes.data.loading.templates import CAMBRIAN_SYSTEM, LLAVA_SYSTEM, TEMPLATES, VICUNA_SYSTEM

# {% generation %} marks what a model writes itself: the answer and the token that ends it.
LOOP = "{% for message in messages %}"
ANSWER = "{% generation %}{{ message.content }}"
DONE = "{% endgeneration %}"


def chatml(between):
    """ChatML as Qwen2, SmolLM2 and Nous-Hermes-2 publish it, save for the default system message."""
    return (
        LOOP + "{{ '<|im_start|>' + message.role + '\n' }}"
        "{% if message.role == 'assistant' %}" + ANSWER + "<|im_end|>" + DONE + "{% else %}"
        "{{ message.content + '<|im_end|>' }}{% endif %}"
        f"{{{{ {between!r} }}}}{{% endfor %}}"
    )


def llama_3(assistant="assistant", gap="\n\n"):
    """Meta-Llama-3-Instruct; its start token comes before the first message."""
    role = f"({assistant!r} if message.role == 'assistant' else message.role)"
    return (
        "{{ bos_token }}" + LOOP + f"{{{{ '<|start_header_id|>' + {role} + '<|end_header_id|>' }}}}"
        f"{{{{ {gap!r} }}}}"
        "{% if message.role == 'assistant' %}" + ANSWER + "<|eot_id|>" + DONE + "{% else %}"
        "{{ message.content + '<|eot_id|>' }}{% endif %}{% endfor %}"
    )


def gemma(after):
    """gemma-it: the assistant is called model."""
    return (
        "{{ bos_token }}" + LOOP + "{{ '<start_of_turn>' + "
        "('model' if message.role == 'assistant' else message.role) + '\n' }}"
        "{% if message.role == 'assistant' %}" + ANSWER + "<end_of_turn>" + DONE +
        f"{{{{ {after!r} }}}}"
        "{% else %}{{ message.content + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    )  # fmt: skip


def brackets(bos_each_round, end_gap):
    """Llama-2-chat (a start token each round, a space before the end) and Mixtral-Instruct."""
    start = "{{ bos_token }}"
    each = start if bos_each_round else ""
    return (
        ("" if bos_each_round else start) + LOOP + "{% if message.role == 'user' %}" + each +
        "{{ '[INST] ' + message.content + ' [/INST]' }}{% else %}"
        "{% generation %}{{ ' ' + message.content + " + repr(end_gap) + " + eos_token }}" + DONE +
        "{% endif %}{% endfor %}"
    )  # fmt: skip


VICUNA = (
    "{{ bos_token }}" + LOOP + "{% if message.role == 'system' %}{{ message.content + ' ' }}"
    "{% elif message.role == 'user' %}{{ 'USER: ' + message.content + ' ASSISTANT:' }}"
    "{% else %}{% generation %}{{ ' ' + message.content + eos_token }}" + DONE +
    "{% endif %}{% endfor %}"
)  # fmt: skip
PHI_3 = (
    "{{ bos_token }}" + LOOP + "{{ '<|' + message.role + '|>\n' }}"
    "{% if message.role == 'assistant' %}" + ANSWER + "<|end|>" + DONE + "{{ '\n' }}{% else %}"
    "{{ message.content + '<|end|>\n' }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{{ bos_token }}" + LOOP + "{% if message.role == 'user' %}<image>{% else %}"
    + ANSWER + "{{ '\n' }}" + DONE + "{% endif %}{% endfor %}"
)  # fmt: skip

CAMBRIAN_8B = f"{CAMBRIAN_SYSTEM[0]} \n    {CAMBRIAN_SYSTEM[1]}\n    {CAMBRIAN_SYSTEM[2]} "
SMOLLM2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# template: (tokenizer, chat template, system message, what the chat template adds at the very end)
CASES = {
    "plain": ("llama_2", PLAIN, None, ""),
    "vicuna_v1": ("llama_2", VICUNA, VICUNA_SYSTEM, ""),
    "llama_2": ("llama_2", brackets(True, " "), None, ""),
    "mistral_instruct": ("llama_2", brackets(False, ""), None, ""),
    "llama_3": ("llama_3", llama_3(), LLAVA_SYSTEM, ""),
    "llama_3_eagle": ("llama_3", llama_3(), VICUNA_SYSTEM, ""),
    # MGM's released 8B calls the assistant "system"; Cambrian-8B has no blank line after headers.
    "llama_3_mgm_released": ("llama_3", llama_3(assistant="system"), LLAVA_SYSTEM, ""),
    "llama_3_cambrian": ("llama_3", llama_3(gap=""), CAMBRIAN_8B, ""),
    "gemma": ("gemma", gemma("\n"), None, "\n"),
    # MGM's released 2B closes each round with the end of the sequence.
    "gemma_mgm_released": ("gemma", gemma("\n<eos>"), None, "\n<eos>"),
    # LLaVA, MGM, Eagle and Cambrian leave out the line breaks between ChatML messages.
    "chatml_yi": ("yi", chatml(""), "Answer the questions.", ""),
    "chatml_yi_cambrian": ("yi", chatml(""), " ".join(CAMBRIAN_SYSTEM), ""),
    "qwen": ("qwen", chatml("\n"), "You are a helpful assistant.", "\n"),
    "smollm2": ("smollm2", chatml("\n"), SMOLLM2, "\n"),
    # Phi-3's own tokens swallow the line break after them, so that of the last message, too.
    "phi_3": ("phi_3", PHI_3, "You are a helpful AI assistant.", ""),
}
CONVERSATIONS = {
    "one turn": ("How many circles are there?", "four"),
    "two turns": (
        "How many?",
        "There are 12,\nor 13.",
        "And now?",
        "isn't it \u00e9t\u00e9 \u2603",
    ),
    "one picture": ("<image>\nWhat does the sign say?", "stop"),
    "three turns, two pictures": ("<image>\nHow?", "a", "<image>\nWhy?", "b", "So?", "c"),
}


@cache
def tokenizer_of(template):
    family, jinja, _, _ = CASES[template]
    return make_tokenizer(family, jinja)


def sample_of(texts):
    turns = tuple(Turn("human" if i % 2 == 0 else "gpt", text) for i, text in enumerate(texts))
    ref = ImageRef("i", "s", 0, 1, "0", 8, 8)
    num_images = sum(text.count(IMAGE) for text in texts)
    return Sample("s", "train", "t", "", turns, (ref,) * num_images, (), "src", "CC0-1.0", ())


def published(template, texts):
    """Return ids and labels by the tokenizer's own chat template, pictures marked as ours."""
    system = CASES[template][2]
    roles = ["user" if i % 2 == 0 else "assistant" for i in range(len(texts))]
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    tokenizer = tokenizer_of(template)
    made = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    ids = [IMAGE_TOKEN if i == image else i for i in made["input_ids"]]
    mask = made["assistant_masks"]
    return ids, [i if learned else IGNORED for i, learned in zip(ids, mask, strict=True)]


def test_every_template_is_compared():
    assert {*CASES, "plain_chat"} == set(TEMPLATES)  # plain_chat: with the tiny model, test_zoo


@pytest.mark.parametrize("texts", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("template", CASES)
def test_ids_and_labels_are_those_of_the_chat_template(template, texts):
    if template == "plain":
        texts = ("<image>\nDescribe it.", texts[1])
    encoded = encode(sample_of(texts), tokenizer_of(template), template, 1000, 4)
    ids, labels = published(template, texts)
    tail = tokenizer_of(template)(CASES[template][3], add_special_tokens=False)["input_ids"]
    assert [*encoded.input_ids, *tail] == ids
    assert [*encoded.labels, *[IGNORED] * len(tail)] == labels


@pytest.mark.parametrize("template", CASES)
def test_a_prompt_ends_where_the_answer_begins(template):
    texts = CONVERSATIONS["two turns"]
    if template == "plain":
        texts = ("<image>", "four")
    encoded = encode(sample_of(texts), tokenizer_of(template), template, 1000, 4)
    ids = prompt(sample_of(texts).turns, tokenizer_of(template), template, num_images=1)
    assert ids == encoded.input_ids[: len(ids)].tolist()
    assert IGNORED not in encoded.labels[len(ids) :]
    assert encoded.labels[len(ids) - 1] == IGNORED


@pytest.mark.parametrize("template", CASES)
def test_an_answer_is_learned_with_a_token_at_which_generation_ends(template):
    tokenizer = tokenizer_of(template)
    encoded = encode(sample_of(("<image>\nHow?", "four")), tokenizer, template, 1000, 4)
    learned = [label for label in encoded.labels if label != IGNORED]
    ends = end_ids(tokenizer, template)
    if template == "plain":  # LLaVA's captions end in a line break, which ends nothing
        assert tokenizer.decode(learned).strip(" ") == "four\n"
        return
    assert learned[-1] in ends
    assert tokenizer.decode(learned[:-1]).strip() == "four"


# Where the four systems' released code differs from the language model's own chat template, as
# (template, the model's own way, texts of ours and theirs at the place)
DEVIATIONS = {
    "mgm 8b": (
        "llama_3_mgm_released",
        llama_3(),
        "<|start_header_id|>system<|end_header_id|>\n\nfour",
        "<|start_header_id|>assistant<|end_header_id|>\n\nfour",
    ),
    "cambrian 8b": (
        "llama_3_cambrian",
        llama_3(),
        "<|end_header_id|>How many<|eot_id|>",
        "<|end_header_id|>\n\nHow many<|eot_id|>",
    ),
    "mgm 2b": (
        "gemma_mgm_released",
        gemma("\n"),
        "four<end_of_turn>\n<eos><start_of_turn>user",
        "four<end_of_turn>\n<start_of_turn>user",
    ),
    "yi 34b": (
        "chatml_yi",
        chatml("\n"),
        "How many<|im_end|><|im_start|>assistant",
        "How many<|im_end|>\n<|im_start|>assistant",
    ),
}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_released_systems_deviate_as_stated(name):
    template, own_way, ours, theirs = DEVIATIONS[name]
    texts = ("How many", "four", "And", "five")
    tokenizer = tokenizer_of(template)
    ids = encode(sample_of(texts), tokenizer, template, 1000, 4).input_ids
    written = tokenizer.decode(ids.tolist())
    messages = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": text}
        for i, text in enumerate(texts)
    ]
    own = tokenizer.apply_chat_template(messages, chat_template=own_way, tokenize=False)
    assert ours in written
    assert theirs not in written
    assert theirs in own


def test_cambrian_opens_like_its_code():
    tokenizer = tokenizer_of("llama_3_cambrian")
    turns = [Turn("human", "<image>\nHow?")]
    words = tokenizer.decode(prompt(turns, tokenizer, "llama_3_cambrian", num_images=0)[:-20])
    assert words.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>You are Cambrian, a highly "
        "intelligent multimodal AI trained by NYU Vision X. \n    As a multimodal AI, you "
    )


def test_a_sentencepiece_vocabulary_reads_the_space_before_a_picture_as_llava_does():
    """Index 35 of a Vicuna prompt is the first visual token only with that space's own token."""
    tokenizer = tokenizer_of("vicuna_v1")
    ids = prompt([Turn("human", "<image>\nHow?")], tokenizer, "vicuna_v1", num_images=1)
    place = ids.index(IMAGE_TOKEN)
    around = tokenizer.convert_ids_to_tokens(ids[place - 1 : place] + ids[place + 1 : place + 3])
    assert around == ["\u2581", "\u2581", "<0x0A>"]
