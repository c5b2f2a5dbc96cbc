"""JSON that others wrote: one reader, whose words are not Python's; and folders of models with it."""

import json

import pytest
from model_kit import write_llama

from manyeyes.errors import UserError
from manyeyes.model.transformer import (
    load_language_model,
    load_language_model_config,
    load_tokenizer,
)
from manyeyes.model.weights.exchange.source import open_source
from manyeyes.model.weights.loading import shards_of
from manyeyes.runtime.json_files import JsonError, read_json

BAD = {
    "a mark": (b'\xef\xbb\xbf{"a": 1}', "begins with a byte order mark; save it as UTF-8 without one"),
    "a long number": (b'{"a": ' + b"1" * 6000 + b"}", "holds a number of 6000 digits; correct it"),
    "a long negative number": (b'{"a": -' + b"1" * 101 + b"}", "holds a number of 101 digits; correct it"),
    "lists without end": (b'{"a": ' + b"[" * 100_000, "nests deeper than any description does; get it again"),
    "objects without end": (b'{"a":' * 100_000, "nests deeper than any description does; get it again"),
    "a key twice": (b'{"a": {"b": 1, "b": 2}}', "has the key 'b' twice, with different values; take one out"),
    "Latin-1": (b'{\n"a": "\xe9"}', "is not UTF-8 text (the byte 0xe9 in line 2); save it as UTF-8"),
    "NaN": (b'{"a": NaN}', "holds NaN, which is no number; correct it"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    "UTF-16 without a mark": ('{"a": 1}'.encode("utf-16-be"), "is UTF-16BE text without a mark that says so; run 'iconv -f UTF-16BE -t UTF-8' on it"),
    "UTF-32": ("{}".encode("utf-32"), "is UTF-32 text; save it as UTF-8"),
    "UTF-32 of the other order": (b"\0\0\xfe\xff\0\0\0{", "is UTF-32 text; save it as UTF-8"),
    "cut off": (b'{"a": "b', "is not JSON (Unterminated string starting at line 1, column 7); get it again"),
    "nothing": (b" \n", "is empty; get it again"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer and not the file itself; run 'git lfs pull'"),
    "a page": (b"<!DOCTYPE html>", "is an HTML page (the answer of a web server?); fetch the file itself"),
    "a NUL": (b'{"a": 1}\0', "is not JSON (Extra data at line 1, column 9); get it again"),
}  # fmt: skip
GOOD = {
    "infinity": (b'{"limit": [0.0, Infinity]}', {"limit": [0.0, float("inf")]}),
    "a key twice alike": (b'{"a": [1], "a": [1]}', {"a": [1]}),
    "a hundred digits": (b"1" * 100, int("1" * 100)),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_json_is_told_in_our_words(case, tmp_path):
    data, expected = BAD[case]
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(JsonError) as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value) == expected


@pytest.mark.parametrize("case", GOOD)
def test_what_real_configs_hold_is_read(case, tmp_path):
    data, expected = GOOD[case]
    (tmp_path / "a.json").write_bytes(data)
    assert read_json(tmp_path / "a.json") == expected


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    return folder


@pytest.fixture
def folder(plain, tmp_path):
    for path in plain.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


READ_BY = {
    "config.json": load_language_model_config,
    "generation_config.json": load_language_model,
    "tokenizer_config.json": load_tokenizer,
    "preprocessor_config.json": load_language_model_config,
    "tokenizer.json": load_tokenizer,
    "special_tokens_map.json": load_tokenizer,
    "added_tokens.json": load_tokenizer,
}


@pytest.mark.parametrize(
    "case", ["a mark", "a long number", "lists without end", "Latin-1", "nothing"]
)
@pytest.mark.parametrize("name", READ_BY)
def test_a_model_with_such_a_file_is_refused_by_its_name(folder, name, case):
    data, expected = BAD[case]
    (folder / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        READ_BY[name](str(folder))
    assert str(caught.value) == f"Cannot read {folder / name}: it {expected}."


@pytest.mark.parametrize("name", READ_BY)
def test_a_list_in_the_place_of_settings_is_refused(folder, name):
    (folder / name).write_text("[]")
    with pytest.raises(UserError) as caught:
        READ_BY[name](str(folder))
    assert str(caught.value) == (
        f"Cannot read {folder / name}: it holds no JSON object; copy the model again."
    )


@pytest.mark.parametrize("load", [load_tokenizer, load_language_model])
def test_a_size_that_is_no_number_is_no_traceback(folder, load):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": float("inf")}))
    with pytest.raises(UserError, match=r"^The config of the language model .* makes no model "):
        load(str(folder))


@pytest.mark.parametrize("case", ["a mark", "a long number", "lists without end", "a key twice"])
def test_weights_to_import_with_such_a_config_or_index_are_refused(folder, case):
    data, expected = BAD[case]
    config, index = folder / "config.json", folder / "model.safetensors.index.json"
    config.write_bytes(data)
    with pytest.raises(UserError) as caught:
        open_source(str(folder)).config()
    assert str(caught.value) == f"Cannot read {config}: it {expected}."
    index.write_bytes(data)
    with pytest.raises(UserError) as caught:
        shards_of(index)
    assert str(caught.value) == f"Cannot read {index}: it {expected}."
