"""What strangers write is text: in records, in ids, in the words of a conversation."""

import json

import pyarrow.parquet as pq
import pytest
from tokenizer_kit import FAMILIES, make_tokenizer

from manyeyes.cli import main
from manyeyes.cli.data import summary
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.sample import Sample, Turn
from manyeyes.data.loading.conversation import IMAGE_TOKEN, encode, prompt
from manyeyes.data.sources.importing import import_llava
from manyeyes.errors import UserError
from manyeyes.serve.reading import with_text

TEMPLATES = {
    "vicuna_v1": "llama_2", "llama_2": "llama_2", "llama_3": "llama_3", "gemma": "gemma",
    "chatml_yi": "yi", "qwen": "qwen", "phi_3": "phi_3", "smollm2": "smollm2",
}  # fmt: skip
"""Template to the family of tokenizers it is for."""
ALL_TOKENS = " ".join(dict.fromkeys(t for family in FAMILIES.values() for t in family.special))


def sample(question, answer):
    turns = (Turn("human", question), Turn("gpt", answer))
    return Sample("s", "train", "t", "", turns, (), (), "src", "CC0-1.0", ())


def controls(tokenizer, ids):
    """Return the control tokens among ids."""
    return [number for number in ids.tolist() if number in tokenizer.added_tokens_decoder]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("switch", [True, False], ids=["switch", "no switch"])
def test_control_tokens_in_a_text_are_no_control_tokens(template, switch):
    tokenizer = make_tokenizer(TEMPLATES[template])
    if not switch:  # as transformers' Mistral tokenizer is
        tokenizer = Switchless(tokenizer)
    spelled = f"about {ALL_TOKENS} and <image> more"
    plain = encode(sample("how many", "four"), tokenizer, template, 9999, 4)
    told = encode(sample(f"how {spelled}", f"four {spelled} five"), tokenizer, template, 9999, 4)
    assert controls(tokenizer, told.input_ids) == controls(tokenizer, plain.input_ids)
    assert controls(tokenizer, told.labels) == controls(tokenizer, plain.labels)
    assert len(controls(tokenizer, told.labels)) == 1
    assert IMAGE_TOKEN not in told.input_ids
    if switch:
        assert tokenizer.decode(told.input_ids).count(f"{spelled}") == 2


class Switchless:
    """A tokenizer whose special tokens cannot be switched off."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name == "backend_tokenizer":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(self, text, *, add_special_tokens):
        return self.inner(text, add_special_tokens=add_special_tokens)


def test_texts_beside_one_with_control_tokens_keep_their_ids():
    tokenizer = make_tokenizer("qwen")
    turns = (Turn("human", "how many"), Turn("gpt", "four"), Turn("human", "<|im_end|>"))
    alone = prompt(turns[:1], tokenizer, "qwen", num_images=0)
    beside = prompt(turns, tokenizer, "qwen", num_images=0)
    assert beside[: len(alone)] == alone
    assert tokenizer(["<|im_end|>"], add_special_tokens=False)["input_ids"][0] == [502]


def test_the_word_image_in_a_text_that_was_recognised_is_no_picture():
    assert with_text("what?", ["a <image> tag"]) == "what?\nReference OCR Token: a < image> tag"


def talk(question="What is it?", answer="A box."):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def record(name="a", **changes):
    return {"id": name, "conversations": talk(), **changes}


LINES = {
    "line separators": (record(conversations=talk("a\u2028b\u2029c\x85d\x0be\x0cf")), None),
    "half a character": (record(conversations=talk("x \ud83d")), "{file}, record 1: conversations[1].value holds \\ud83d, half of a character; correct it."),
    "half a character in an id": (record("\udc00"), "{file}, record 1: id holds \\udc00, half of a character; correct it."),
    "half a character in a path": (record(image="\ud83d.png"), "{file}, record 1: image holds \\ud83d, half of a character; correct it."),
    "half a character in a key": ({"\ud83d": 1, **record()}, "{file}, record 1: a key of the record holds \\ud83d, half of a character; correct it."),
    "bytes that are not UTF-8": (b'{"id": "a", "conversations": [{"from": "human", "value": "caf\xe9"}]}', "{file}, record 1: conversations[1].value holds the byte 0xe9, which is not UTF-8; correct it."),
    "an endless number": (b'{"id": ' + b"9" * 5000 + b"}", "{file}, record 1: it holds a number of 5000 digits; shorten or remove it."),
    "endless nesting": (b'{"id": ' + b"[" * 100_000, '{file}, line 1: this is nested deeper than any conversation; a list of {"id", "image", "conversations"} is needed.'),
    "a broken line": (b'{"id": "a", ', "{file}, line 1: this is not JSON: Expecting property name enclosed in double quotes at line 1, column 13; correct or export it again."),
    "two values in a line": (b'{"id": "a", "conversations": 1} {}', "{file}, line 1: this is not JSON: Extra data at line 1, column 33; correct or export it again."),
    "a NUL in a text": (record(conversations=talk("a\0b")), "{file}, record 1 (id 'a'): the question in turn 1 holds a NUL character; take it out."),
    "a NUL in an id": (record("a\0"), "{file}, record 1: its id 'a\\x00' holds the control character '\\x00'; take it out."),
    "escape codes in an id": (record("\x1b[2J"), "{file}, record 1: its id '\\x1b[2J' holds the control character '\\x1b'; take it out."),
    "an endless id": (record("x" * 5000), "{file}, record 1: its id '" + "x" * 99 + "..." + "x" * 11 + "' has 5000 characters; give at most 500."),
    "an endless task": (record(task="t" * 5000), "{file}, record 1 (id 'a'): its task '" + "t" * 99 + "..." + "t" * 11 + "' has 5000 characters; give at most 500."),
    "a list as a task": (record(task=["vqa"]), "{file}, record 1 (id 'a'): its task is ['vqa']; give one text."),
    "a split by another name": (record(split="valid"), "{file}, record 1 (id 'a'): its split is 'valid'; use one of train, val, test; did you mean 'val'?"),
    "pictures by another name": (record(img="a.png"), "{file}, record 1 (id 'a'): its picture under 'img' is not read; call the key image."),
    "image and images": (record(image="a.png", images=["b.png"]), "{file}, record 1 (id 'a'): its image and its images differ; keep one of the keys."),
    "a system prompt": (record(system="Be kind."), "{file}, record 1 (id 'a'): its system prompt under 'system' is not read (the template has one); remove it."),
    "a video": (record(video="x.mp4"), "{file}, record 1 (id 'a'): it names something under 'video', but only pictures are read; remove it."),
    "messages": ({"id": "a", "messages": [{"role": "user", "content": "x"}]}, "{file}, record 1 (id 'a'): its conversation under 'messages' is not read; call the key conversations and write [{\"from\": \"human\", \"value\": ...}, {\"from\": \"gpt\", \"value\": ...}]."),
    "a NUL in a path": (record(image="a\0.png"), "{file}, record 1 (id 'a'), image 'a\\x00.png': its path holds a NUL character; take it out."),
    "other capitals": (record(image="A.png"), "{file}, record 1 (id 'a'), image 'A.png': there is no such file in {images}, but there is 'a.png', other capitals or spaces; write both alike."),
    "an accent of its own": (record(image="e\u0301.png"), "{file}, record 1 (id 'a'), image 'e\u0301.png': there is no such file in {images}, but there is '\xe9.png', the same letters made of other characters (Unicode NFC against NFD); write both alike."),
    "an empty image": (record(image=""), None),
    "an empty list of images": (record(images=[]), None),
    "numbers as answers": (record(answers=[3, "x"]), None),
    "answers that are true": (record(answers=[True]), "{file}, record 1 (id 'a'): its answers are [True]; give a list of texts."),
    "the word image": (record(conversations=talk("How does <image> work in SVG?", "<image> is a tag.")), None),
    "the word image on its own line": (record(conversations=talk("Explain:\n<image>"), image=[]), None),
}  # fmt: skip


@pytest.fixture
def place(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for name in ("a.png", "\xe9.png"):
        Image.new("RGB", (8, 8), (len(name), 2, 3)).save(tmp_path / "images" / name)
    return tmp_path


def write_lines(place, *values):
    file = place / "t.jsonl"
    lines = [
        v if isinstance(v, bytes) else json.dumps(v, ensure_ascii=True).encode() for v in values
    ]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def take(place, file, **options):
    return import_llava(file, place / "images", place / "out", licence="CC0-1.0", **options)


@pytest.mark.parametrize("case", LINES)
def test_a_record_is_taken_or_named_and_put_aside(place, case):
    value, expected = LINES[case]
    if case == "line separators":  # raw, as other writers leave them
        value = json.dumps(value, ensure_ascii=False).encode()
    file = write_lines(place, value, record("good"))
    if expected is None:
        assert take(place, file).details["samples"] == 2
        return
    told = expected.replace("{file}", str(file)).replace("{images}", str(place / "images"))
    with pytest.raises(UserError) as caught:
        take(place, file)
    assert str(caught.value) == (
        f"{told}\n1 of 2 records (50.0%) cannot be used: correct it, or put it aside with "
        "--quarantine 0.5."
    )
    assert take(place, file, quarantine=0.5).details["samples"] == 1
    (row,) = pq.read_table(place / "out/quarantine.parquet").to_pylist()
    assert row["detail"] == told


@pytest.mark.parametrize(
    "case", [name for name, (_, told) in LINES.items() if told and "line 1" not in told]
)
def test_a_record_of_a_list_is_named_alike(place, case):
    value, expected = LINES[case]
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    (place / "t.json").write_bytes(b"[" + raw + b", " + json.dumps(record("good")).encode() + b"]")
    manifest = take(place, place / "t.json", quarantine=0.5)
    (row,) = pq.read_table(place / "out/quarantine.parquet").to_pylist()
    told = expected.replace("{file}", str(place / "t.json"))
    assert row["detail"] == told.replace("{images}", str(place / "images"))
    assert manifest.details["samples"] == 1


def test_all_bad_records_are_told_at_once_and_the_rest_counted(place):
    bad = [record(f"b{n}", image="gone.png") for n in range(23)] + [record("c", split="dev")] * 2
    file = write_lines(place, *bad, *(record(f"g{n}") for n in range(75)))
    with pytest.raises(UserError) as caught:
        take(place, file)
    lines = str(caught.value).split("\n")
    assert len(lines) == 22
    assert lines[0] == (
        f"{file}, record 1 (id 'b0'), image 'gone.png': there is no such file in "
        f"{place}/images; add it."
    )
    assert lines[20:] == [
        "and 5 more (image_missing 3, split 1, id 1)",
        "25 of 100 records (25.0%) cannot be used: correct them, or put them aside with "
        "--quarantine 0.25.",
    ]


def test_a_list_named_jsonl_and_lines_named_json_are_read_by_what_they_are(place):
    lines = write_lines(place, record("a"), record("b"))
    lines.rename(place / "lines.json")
    (place / "list.jsonl").write_text(json.dumps([record("a"), record("b")], indent=1))
    for name in ("lines.json", "list.jsonl"):
        assert take(place, place / name).details["samples"] == 2
        (place / "out").rename(place / f"out of {name}")


FILES = {
    "gzip": (b"\x1f\x8b\x08\0", "gzip-compressed; unpack it first"),
    "UTF-16": ("[]".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    "UTF-32": ("[]".encode("utf-32"), "UTF-32 text; save it as UTF-8"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer and not the file itself; run 'git lfs pull'"),
    "a page": (b"<!DOCTYPE html><html>", "an HTML page (the answer of a web server?); fetch the file itself"),
    "Parquet": (b"PAR1abcd", "a Parquet table; export it as JSON lines"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_another_kind_is_named(place, case):
    data, told = FILES[case]
    (place / "t.json").write_bytes(data)
    with pytest.raises(UserError) as caught:
        take(place, place / "t.json")
    assert str(caught.value) == (
        f'{place}/t.json is {told}. Here a list of {{"id", "image", "conversations"}} is needed.'
    )


def test_ids_that_repeat_can_be_numbered(place):
    file = write_lines(place, record("7"), record("7", task="x"), record("7"), record("7-2"))
    manifest = take(place, file, number_ids=True)
    assert manifest.details["ids_numbered"] == 3
    names = [found.id for found in Dataset.open(place / "out").samples()]
    assert names == ["7", "7-2", "7-3", "7-2-2"]


def test_what_was_done_to_the_records_is_told(place, capsys):
    file = write_lines(
        place,
        record("a", image="a.png", model="", source="coco"),
        record("b", images=["a.png"], conversations=talk("<img> what?")),
        record("c", conversations=talk("</s> x", "y <|im_end|> </s>"), task="[/red]"),
        record("d", conversations=talk("the <image> tag")),
        record("e", split="dev"),
    )
    options = ["--images", str(place / "images"), "--licence", "CC0-1.0", "--quarantine", "0.2"]
    out = str(place / "Mein Satz")
    assert main(["data", "import", str(file), *options, "--source", "mine", "--out", out]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: 4 samples, dataset ")
    assert lines == [
        "  train.[/red] 1, train.mine 3; 1 pictures",
        f"  put aside: 1 records (split 1), listed in {out}/quarantine.parquet",
        "  <image> was put in front of the first question for 2 pictures",
        "  in 1 of those samples something like <img> stands in a question, as text",
        "  <image> is a plain word 1 times, in answers or without pictures",
        "  1 samples hold what is spelled like a control token (</s> 1, <|im_end|> 1); "
        "it is learned as plain text",
        "  keys that are not read: model 1, source 1",
        "  no recipe can name 'Mein Satz': rename the folder (small letters, digits, . _ -)",
    ]


def test_names_from_the_command_line_are_held_to_the_same(place):
    file = write_lines(place, record())
    for what, name, told in (
        ("source", "a\udce4", "'a\\udce4' holds half a character (a lone surrogate); write it as UTF-8"),
        ("licence", "\udce4", "'\\udce4' holds half a character (a lone surrogate); write it as UTF-8"),
        ("source", "s" * 600, f"'{'s' * 99}...{'s' * 11}' has 600 characters; give at most 500"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            import_llava(
                file, place / "images", place / "out", **{"licence": "CC0-1.0", what: name}
            )
        assert str(caught.value) == f"The {what} {told}; give another with --{what}."


def test_a_summary_shows_no_escape_codes(place):
    assert summary(place / "out", {"counts": {"train.\x1b[2J": 1}, "images": 0}) == [
        "train.\\x1b[2J 1; 0 pictures"
    ]
