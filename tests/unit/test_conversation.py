"""Conversations become ids and labels segment by segment, with every picture in its place."""

import pytest

from manyeyes.data.dataset.sample import ImageRef, Sample, Turn
from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN, Codec, encode, end_ids, prompt
from manyeyes.data.loading.templates import TEMPLATES
from manyeyes.errors import UserError


class Words:
    """A tokenizer of single letters, words and their leading space, after an own start token."""

    def __init__(self, bos=1, eos=2, space_mark=False):
        self.bos_token_id, self.eos_token_id = bos, eos
        self.space_mark = space_mark
        self.table = {}
        self.calls = 0

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        self.calls += 1
        return {"input_ids": [self.one(item) for item in text]}

    def one(self, text):
        pieces = []
        for piece in text.replace("\n", " \n").split(" "):
            if piece or not pieces:
                pieces.append(piece)
        return [self.table.setdefault(p, 10 + len(self.table)) for p in pieces if p]

    def convert_ids_to_tokens(self, ids):
        name = {number: piece for piece, number in self.table.items()}[ids]
        return ("\u2581" if self.space_mark else "") + name

    def read(self, ids):
        names = {number: piece for piece, number in self.table.items()}
        names |= {IMAGE_TOKEN: "<image>", 1: "<s>", 2: "</s>", IGNORED: "_"}
        return " ".join(names[i] for i in ids)


def sample(*texts, num_images=None, task="numbers"):
    turns = tuple(Turn("human" if i % 2 == 0 else "gpt", t) for i, t in enumerate(texts))
    if num_images is None:
        num_images = sum(t.count("<image>") for t in texts[::2])
    ref = ImageRef("i", "s", 0, 1, "0", 8, 8)
    return Sample("s1", "train", task, "", turns, (ref,) * num_images, (), "src", "CC0-1.0", ())


CASES = [
    (
        "plain",
        ("<image>\nDescribe it.", "a red circle"),
        "<s> <image> a red circle \n",
        "_ _ a red circle \n",
    ),
    (
        "plain_chat",
        ("<image>\nhow many", "four"),
        "<s> user <image> how many assistant four </s>",
        "_ _ _ _ _ _ four </s>",
    ),
    (
        "plain_chat",
        ("<image> what", "one", "and then", "two"),
        "<s> user <image> what assistant one </s> user and then assistant two </s>",
        "_ _ _ _ _ one </s> _ _ _ _ two </s>",
    ),
    (
        "plain_chat",
        ("left <image> and right <image> ?", "yes"),
        "<s> user left <image> and right <image> ? assistant yes </s>",
        "_ _ _ _ _ _ _ _ _ yes </s>",
    ),
    ("plain_chat", ("hi", "hello"), "<s> user hi assistant hello </s>", "_ _ _ _ hello </s>"),
]


@pytest.mark.parametrize(("template", "texts", "ids", "labels"), CASES)
@pytest.mark.parametrize("space_mark", [False, True])
def test_only_answers_and_their_ends_are_learned(template, texts, ids, labels, space_mark):
    tokenizer = Words(space_mark=space_mark)
    encoded = encode(sample(*texts), tokenizer, template, 100, 4)
    assert tokenizer.read(encoded.input_ids) == ids
    assert tokenizer.read(encoded.labels) == labels
    assert encoded.length == len(ids.split(" ")) + 3 * ids.count("<image>")
    assert encoded.num_images == ids.count("<image>")
    assert not encoded.truncated


def test_vicuna_conversation_has_system_prompt_and_ends_each_answer():
    tokenizer = Words()
    encoded = encode(sample("<image>\nhow many", "four"), tokenizer, "vicuna_v1", 100, 4)
    text = tokenizer.read(encoded.input_ids)
    assert text.startswith("<s> A chat between a curious user")
    assert text.endswith("USER: <image> \nhow many ASSISTANT: four </s>")
    assert tokenizer.read(encoded.labels).lstrip("_ ") == "four </s>"


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_prompt_is_training_text_before_the_last_answer(template):
    tokenizer = Words()
    whole = sample("<image> what", "one", "and then", "two")
    encoded = encode(whole, tokenizer, template, 1000, 4)
    ids = prompt(whole.turns, tokenizer, template, num_images=1)
    assert ids == encoded.input_ids[: len(ids)].tolist()
    learned = [label for label in encoded.labels[len(ids) :] if label != IGNORED]
    assert learned == list(encoded.input_ids[len(ids) :])
    assert prompt(whole.turns[:-1], tokenizer, template, num_images=1) == ids


@pytest.mark.parametrize(
    ("max_length", "num_images", "kept"),
    [(13, 2, 7), (12, 2, 6), (10, 2, 4), (9, 1, 3), (5, 0, 2), (6, 1, 3), (1, 0, 1)],
)
def test_truncation_drops_whole_pictures_only(max_length, num_images, kept):
    # <s>=1 user=1 <image>=4 <image>=4 assistant=1 yes=1 </s>=1
    encoded = encode(sample("<image><image>", "yes"), Words(), "plain_chat", max_length, 4)
    assert encoded.num_images == num_images
    assert len(encoded.input_ids) == kept
    assert encoded.length <= max_length
    assert encoded.truncated == (kept < 7)
    assert encoded.num_supervised == max(0, kept - 5)


@pytest.mark.parametrize(
    ("texts", "num_images", "places"),
    [(("what", "one"), 1, 0), (("<image><image>", "one"), 1, 2)],
)
def test_placeholders_must_match_pictures(texts, num_images, places):
    with pytest.raises(UserError) as caught:
        encode(sample(*texts, num_images=num_images), Words(), "plain_chat", 100, 4)
    assert str(caught.value) == (
        f"sample s1: its questions hold {places} <image> for {num_images} pictures; "
        "write one per picture."
    )


def test_placeholder_in_an_answer_is_text():
    tokenizer = Words()
    encoded = encode(sample("what", "say <image>"), tokenizer, "plain_chat", 100, 4)
    assert IMAGE_TOKEN not in encoded.input_ids


def test_unknown_template_names_the_nearest():
    with pytest.raises(UserError) as caught:
        prompt([Turn("human", "hi")], Words(), "vicuna_v2", num_images=0)
    assert str(caught.value) == (
        f"Unknown conversation template 'vicuna_v2': known are {', '.join(sorted(TEMPLATES))}; "
        "did you mean 'vicuna_v1'?"
    )


def test_many_samples_cost_one_call_and_equal_single_ones():
    tokenizer = Words()
    samples = [sample("<image> what", "one"), sample("hi", "hello"), sample("<image> what", "two")]
    codec = Codec(tokenizer, "plain_chat", 100, 4)
    together = codec.encode_all(samples)
    assert tokenizer.calls == 2
    assert together == [codec.encode(item) for item in samples]


def test_a_vocabulary_without_start_token_gets_none():
    encoded = encode(sample("hi", "ho"), Words(bos=None), "plain_chat", 100, 4)
    assert 1 not in encoded.input_ids


def test_a_template_whose_end_token_the_vocabulary_lacks_is_refused():
    class Letters(Words):
        def one(self, text):
            return [ord(letter) for letter in text]

    with pytest.raises(UserError) as caught:
        end_ids(Letters(), "gemma")
    assert str(caught.value) == (
        "The template 'gemma' ends answers with <end_of_turn>, which is not a token of this "
        "language model: choose the template that it was tuned with."
    )


def test_answers_end_at_the_template_and_at_the_sequence():
    tokenizer = Words()
    stop = tokenizer.one("<end_of_turn>")
    assert end_ids(tokenizer, "gemma") == (*stop, 2)
    assert end_ids(tokenizer, "vicuna_v1") == (2,)
