"""Texts are tokenised once for a tokenizer and a template, whoever asks and however it ends."""

import hashlib
import json
import mmap
import multiprocessing
import os
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizer_kit import FAMILIES, make_tokenizer
from training_kit import make_codec, make_dataset, make_section

from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.loading import conversation, token_store
from manyeyes.data.loading import tokenizer as asking
from manyeyes.data.loading.batches import prepare
from manyeyes.data.loading.control import Controls
from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN, Codec
from manyeyes.data.loading.token_store import table_name, tokens_folder, tokens_of
from manyeyes.data.loading.tokens import DTYPES
from manyeyes.errors import UserError
from manyeyes.training.features import Draws
from manyeyes.training.identity import identity

SOURCES = {"colours": 3.0, "chat": 1.0}
TOKENIZER = make_tokenizer("smollm2")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MANYEYES_TOKENS_GIB", raising=False)
    return tokens_folder()


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "data")


@pytest.fixture
def made(monkeypatch):
    """Count how often texts are tokenised."""
    calls = []

    def counted(*args):
        calls.append(args)
        return conversation.tokenise(*args)

    monkeypatch.setattr(token_store, "tokenise", counted)
    return calls


def codec(max_length=4096, visual=4, tokenizer=TOKENIZER, template="plain_chat"):
    return Codec(tokenizer, template, max_length, visual)


def tables(place):
    return sorted(path for path in place.iterdir() if path.name != "locks")


def alike(prepared, samples, a_codec):
    """Tell whether prepared samples are what the codec makes of them one by one."""
    encoded = a_codec.encode_all(samples)
    return list(prepared.encoded) == [one for one in encoded if one.num_supervised]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_fast_way_gives_the_ids_of_a_call(family, monkeypatch):
    texts = [" user", "what is  this?\n", " <image> É naïve", "</s> <|im_end|> <eos>", "a" * 300]
    tokenizer = make_tokenizer(family)
    assert asking.plain_backend(tokenizer) is tokenizer.backend_tokenizer
    fast = asking.token_ids(tokenizer, texts, Controls.of(tokenizer, ""))
    monkeypatch.setattr(asking, "plain_backend", lambda _: None)
    assert fast == asking.token_ids(tokenizer, texts, Controls.of(tokenizer, ""))


def test_what_is_more_than_a_fast_tokenizer_is_called():
    class Special(type(TOKENIZER)):
        def __call__(self, text, **options):
            return {"input_ids": [[7] for _ in text]}

    tokenizer = Special(tokenizer_object=TOKENIZER.backend_tokenizer)
    assert asking.plain_backend(tokenizer) is None
    assert asking.token_ids(tokenizer, ["one", "two"], Controls.of(tokenizer, "")) == [
        [7],
        [7],
    ]


def cut_by_hand(ids, learned, costs, max_length):
    """Cut a sample token by token."""
    length = num_images = kept = 0
    for token in ids:
        cost = costs[num_images] if token == IMAGE_TOKEN else 1
        if length + cost > max_length:
            break
        length, kept, num_images = length + cost, kept + 1, num_images + (token == IMAGE_TOKEN)
    labels = [i if keep else IGNORED for i, keep in zip(ids, learned, strict=True)][:kept]
    return ids[:kept], labels, length, num_images, kept < len(ids)


@pytest.mark.parametrize("max_length", [2, 5, 19, 24, 30, 1000])
def test_samples_are_cut_as_if_token_by_token(dataset, max_length):
    def by_size(width, height):
        return 3 + width % 7 + height % 2

    samples = dataset.samples("train")
    whole = tokens_of(samples, TOKENIZER, "plain_chat")
    for place, found in enumerate(codec(max_length, by_size).encode_all(samples)):
        part = slice(whole.starts[place], whole.starts[place + 1])
        costs = [by_size(ref.width, ref.height) for ref in samples[place].images]
        ids, labels, *rest = cut_by_hand(
            whole.ids[part].tolist(), whole.learned[part].tolist(), costs, max_length
        )
        assert (found.input_ids.tolist(), found.labels.tolist()) == (ids, labels)
        assert [found.length, found.num_images, found.truncated] == rest
        assert found.num_supervised == sum(label != IGNORED for label in labels[1:])


def test_codecs_of_other_lengths_share_what_was_made_once(dataset, place, made):
    for one in (codec(), codec(26), codec(4096, 9), codec(4096, lambda w, h: w + h)):
        prepared = prepare(Dataset.open(dataset.path), one, SOURCES)
        assert alike(prepared, dataset.samples("train"), one)
        assert prepared.encoded.num_supervised.tolist() == [
            item.num_supervised for item in prepared.encoded
        ]
    assert len(made) == len(tables(place)) == 2


def test_each_task_has_its_own_table(dataset, place, made):
    prepare(dataset, codec(), {"chat": 1.0})
    assert len(made) == len(tables(place)) == 1
    prepare(dataset, codec(), SOURCES)
    assert len(made) == len(tables(place)) == 2
    prepare(dataset, codec(), SOURCES, excluded={"s1", "t2"})
    assert len(made) == 2


def test_whatever_decides_the_ids_decides_the_name(dataset, tmp_path):
    samples = dataset.samples("train")
    whole = samples.source.samples("train", None, ())
    other_end = make_tokenizer("smollm2")
    other_end.eos_token = "<|endoftext|>"
    literal = make_tokenizer("smollm2")
    literal.split_special_tokens = True
    names = [
        table_name(whole, TOKENIZER, "smollm2"),
        table_name(whole, TOKENIZER, "plain"),
        table_name(whole, make_tokenizer("qwen"), "smollm2"),
        table_name(whole, other_end, "smollm2"),
        table_name(whole[1:], TOKENIZER, "smollm2"),
        table_name(make_dataset(tmp_path / "more", 28).samples("train"), TOKENIZER, "smollm2"),
    ]
    assert len(set(names)) == len(names)
    again = Dataset.open(make_dataset(tmp_path / "same").path).samples("train")
    assert table_name(again, make_tokenizer("smollm2"), "smollm2") == names[0]
    assert table_name(again, make_codec().tokenizer, "plain_chat") == ""


def mapped(array):
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


def test_tables_are_mapped_and_not_read(dataset):
    tokens = tokens_of(dataset.samples("train"), TOKENIZER, "smollm2")
    assert all(mapped(array) for array in tokens.arrays())
    assert {type(array) for array in tokens.arrays()} == {np.ndarray}
    (prepared,) = prepare(dataset, codec(), SOURCES).encoded[:1]
    assert mapped(prepared.input_ids)


def test_texts_are_not_read_where_the_tokens_are_there(dataset):
    prepare(dataset, codec(), SOURCES)
    again = prepare(Dataset.open(dataset.path), codec(26), SOURCES)
    Draws.of(again, SimpleNamespace(sources=SOURCES, num_steps=4, batch=SimpleNamespace(size=4)))
    identity(torch.nn.Linear(1, 1), again, make_section(), 0)
    assert "conversations" not in again.samples.source._columns


def make_in_a_process(path, log, together):
    """Ask for a table at the same moment as others; log who makes it."""

    def logged(*args):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        return conversation.tokenise(*args)

    token_store.tokenise = logged
    samples = Dataset.open(path).samples("train")
    together.wait()
    tokens = tokens_of(samples, TOKENIZER, "smollm2")
    assert mapped(tokens.ids)
    assert len(tokens) == 30


def test_one_process_makes_a_table_and_the_others_wait(dataset, tmp_path, place):
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)
    log = tmp_path / "log"
    makers = [
        context.Process(target=make_in_a_process, args=(dataset.path, log, together))
        for _ in range(3)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert len(tables(place)) == 1


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "cut off": lambda table: os.truncate(table / "ids.npy", 200),
    "changed": lambda table: flip(table / "learned.npy"),
    "missing": lambda table: (table / "counts.npy").unlink(),
    "no head": lambda table: (table / "head.json").unlink(),
    "bad head": lambda table: (table / "head.json").write_text("{"),
    "other type": lambda table: np.save(table / "images.npy", np.zeros(30, np.int32)),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_table_is_made_again(dataset, place, made, damage):
    expected = tokens_of(dataset.samples("train"), TOKENIZER, "smollm2").digest
    (table,) = tables(place)
    stale = place / f".{table.name}.0123.tmp"
    stale.mkdir()
    DAMAGES[damage](table)
    found = tokens_of(dataset.samples("train"), TOKENIZER, "smollm2")
    assert (found.digest, len(made)) == (expected, 2)
    assert mapped(found.ids)
    assert tables(place) == [table]


def test_a_home_that_cannot_be_written_costs_memory_and_nothing_else(dataset, place, made):
    place.parent.write_text("a file, where a folder is needed")
    prepared = prepare(dataset, codec(), SOURCES)
    assert alike(prepared, dataset.samples("train"), codec())
    assert not mapped(prepared.encoded[0].input_ids)
    assert len(made) == 2


def test_a_disk_that_refuses_leaves_nothing_behind(dataset, place, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_store._Writer, "finish", refuse)
    prepared = prepare(dataset, codec(), SOURCES)
    assert alike(prepared, dataset.samples("train"), codec())
    assert tables(place) == []


def kept(place, name, num_bytes, unused_for):
    folder = place / name
    folder.mkdir(parents=True)
    (folder / "ids.npy").write_bytes(b"\0" * num_bytes)
    (folder / "used").touch()
    now = (folder / "used").stat().st_mtime
    os.utime(folder / "used", (now - unused_for,) * 2)


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (0.001, ["long", "longer", "new", "now"]),
        (120_000 / 2**30, ["long", "new", "now"]),
        (80_000 / 2**30, ["new", "now"]),
        (41_000 / 2**30, ["now"]),
    ],
)
def test_the_longest_unused_make_room(dataset, place, monkeypatch, limit, left):
    monkeypatch.setenv("MANYEYES_TOKENS_GIB", str(limit))
    for name, unused_for in (("now", 60), ("long", 5000), ("longer", 9000)):
        kept(place, name, 40_000, unused_for)
    tokens = tokens_of(dataset.samples("train"), TOKENIZER, "smollm2")
    names = {"now", "long", "longer"}
    found = [path.name if path.name in names else "new" for path in tables(place)]
    assert sorted(found) == left
    assert mapped(tokens.ids) is ("new" in left)


def test_what_is_open_makes_no_room_however_old_it_is(dataset, place, monkeypatch):
    samples = dataset.samples("train")
    held = tokens_of(samples, TOKENIZER, "smollm2")
    (table,) = tables(place)
    size = sum(path.stat().st_size for path in table.iterdir())
    os.utime(table / "used", (0, 0))
    monkeypatch.setenv("MANYEYES_TOKENS_GIB", str(1.5 * size / 2**30))
    assert not mapped(tokens_of(samples[::-1], TOKENIZER, "smollm2").ids)
    assert tables(place) == [table]
    del held
    assert mapped(tokens_of(samples[::-1], TOKENIZER, "smollm2").ids)
    assert len(tables(place)) == 1
    assert not table.exists()


def test_the_digest_is_that_of_the_index_that_is_read(dataset):
    samples = dataset.samples("train")
    expected = hashlib.sha256((dataset.path / "samples.parquet").read_bytes()).hexdigest()
    path = dataset.path / "samples.parquet"
    path.rename(path.with_suffix(".old"))
    path.write_text("another index")
    assert samples.source.digest == expected
    assert len(list(samples)) == 30


def rewritten(dataset, **texts):
    """Write the index again with other conversations of some samples."""
    path = dataset.path / "samples.parquet"
    table = pq.read_table(path)
    rows = zip(table["id"].to_pylist(), table["conversations"].to_pylist(), strict=True)
    column = pa.array([texts.get(name, text) for name, text in rows])
    place = table.column_names.index("conversations")
    pq.write_table(table.set_column(place, "conversations", column), path)
    return Dataset.open(dataset.path)


BAD = {
    "unreadable": (
        "[1]",
        "sample s3: its conversation is not a JSON list of turns with 'from' (human or gpt) and "
        "'value'; correct or remove the row.",
    ),
    "no place for its picture": (
        json.dumps([{"from": "human", "value": "what?"}, {"from": "gpt", "value": "red"}]),
        "sample s3: its questions hold 0 <image> for 1 pictures; write one per picture.",
    ),
}


@pytest.mark.parametrize("case", sorted(BAD))
@pytest.mark.parametrize("home", ["a folder", "a file"])
def test_a_bad_row_is_told_unless_it_is_in_quarantine(dataset, place, case, home):
    if home == "a file":
        place.parent.write_text("")
    text, message = BAD[case]
    bad = rewritten(dataset, s3=text)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            prepare(bad, codec(), SOURCES)
        assert str(caught.value) == message
    prepared = prepare(bad, codec(), SOURCES, excluded={"s3"})
    assert "s3" not in list(prepared.samples.ids())
    assert len(prepared.samples) == 29


def identified(dataset, a_codec=None, sources=SOURCES, **options):
    prepared = prepare(dataset, a_codec or codec(), sources, **options)
    torch.manual_seed(0)
    return identity(torch.nn.Linear(1, 1), prepared, make_section(), 0)


def test_identity_changes_with_all_that_is_trained_on(dataset, tmp_path, monkeypatch):
    table = dataset.table()
    places = {name: tmp_path / name for name in ("order", "pictures", "words", "names")}
    for folder in places.values():
        make_dataset(folder)
    pq.write_table(table.take(list(range(30))[::-1]), places["order"] / "samples.parquet")
    images = table["images"].to_pylist()
    images[0], images[3] = images[3], images[0]
    place = table.column_names.index("images")
    shown = table.set_column(place, "images", pa.array(images, table.schema.field("images").type))
    pq.write_table(shown, places["pictures"] / "samples.parquet")
    named = table.set_column(0, "id", pa.array([f"n{i}" for i in range(30)]))
    pq.write_table(named, places["names"] / "samples.parquet")
    text = json.dumps([{"from": "human", "value": "hello"}, {"from": "gpt", "value": "you"}])
    found = [
        identified(dataset),
        identified(dataset, codec(26)),
        identified(dataset, codec(template="plain")),
        identified(dataset, excluded={"t1"}),
        *(identified(Dataset.open(places[name])) for name in ("order", "pictures", "names")),
        identified(rewritten(Dataset.open(places["words"]), t0=text)),
    ]
    assert len(set(found)) == len(found)
    monkeypatch.setenv("MANYEYES_HOME", "/proc/nowhere")
    assert identified(dataset) == found[0]


def test_the_files_are_plain_numpy(dataset, place):
    tokens = tokens_of(dataset.samples("train"), TOKENIZER, "smollm2")
    (table,) = tables(place)
    for name, dtype in DTYPES.items():
        array = np.load(table / f"{name}.npy")
        assert array.dtype == dtype
        assert np.array_equal(array, getattr(tokens, name))
