"""The zoo: names are found or refused, shipped files are whole, small and made by this code."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.sample import Sample, Turn
from manyeyes.data.loading.conversation import Codec
from manyeyes.data.loading.templates import TEMPLATES
from manyeyes.data.sources.starter.builder import build as build_starter
from manyeyes.data.sources.starter.vocabulary import scene_words
from manyeyes.errors import UserError
from manyeyes.model.encoders.build import encoder_from_spec
from manyeyes.model.encoders.registry import ENCODERS
from manyeyes.model.transformer import load_language_model, load_tokenizer
from manyeyes.model.weights.loading import load_weights
from manyeyes.model.weights.zoo import LANGUAGE_PART, PARTS, WEIGHTS, resolve
from tools.zoo.__main__ import main as build_parts
from tools.zoo.build import (
    GRID,
    Plan,
    build,
    build_expert_part,
    build_language_part,
    class_words,
    tokenizer_for,
)
from tools.zoo.corpus import CLEAN, Noise, disturb, lessons, splice, write_out
from tools.zoo.drills import lines, look
from tools.zoo.fit import Schedule, share_at
from tools.zoo.language import accuracy_from_text
from tools.zoo.muon import orthogonalize
from tools.zoo.pictures import load_pictures

EXPERTS = [name for name in PARTS if name != LANGUAGE_PART]
LARGEST = 10_000_000
FLOOR = 0.3


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starter")
    build_starter(folder, seed=7, scale=0.02, image_size=128)
    return Dataset.open(folder)


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_found(name):
    assert resolve(f"zoo:{name}") == WEIGHTS / name


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "zoo:clip-tinny",
            "Unknown part of the zoo 'clip-tinny': known are clip-tiny, convnext-tiny, eva02-tiny, "
            "llama-tiny, pix2struct-tiny, sam-tiny; did you mean 'clip-tiny'?",
        ),
        (
            "zoo:",
            "Unknown part of the zoo '': known are clip-tiny, convnext-tiny, eva02-tiny, "
            "llama-tiny, pix2struct-tiny, sam-tiny.",
        ),
        ("clip-tiny", "'clip-tiny' is not a zoo reference; write zoo:NAME."),
    ],
)
def test_a_wrong_reference_is_refused(reference, message):
    with pytest.raises(UserError) as caught:
        resolve(reference)
    assert str(caught.value) == message


def test_an_unknown_part_is_not_built(tmp_path):
    with pytest.raises(UserError, match="Unknown part of the zoo 'vit'"):
        build(tmp_path, parts=("vit",))
    assert not list(tmp_path.iterdir())


def test_the_manifest_states_every_shipped_file():
    stated = json.loads((WEIGHTS / "manifest.json").read_text())["files"]
    files = {p.relative_to(WEIGHTS).as_posix(): p for p in WEIGHTS.glob("*/*")}
    assert set(stated) == set(files)
    for name, path in files.items():
        data = path.read_bytes()
        assert stated[name] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_what_ships_is_small_and_holds_no_pickle():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".jinja"}


@pytest.mark.parametrize("name", EXPERTS)
def test_shipped_experts_fit_the_encoder_table(name):
    encoder = encoder_from_spec(ENCODERS[name], grid=GRID, normalization="per_encoder")
    report = load_weights(encoder, f"zoo:{name}")
    assert report.num_parameters == sum(p.numel() for p in encoder.tower.parameters())


def test_every_scene_word_is_one_token_of_its_own():
    tokenizer = load_tokenizer(f"zoo:{LANGUAGE_PART}")
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in scene_words()]
    assert {len(one) for one in ids} == {1}
    assert len({one[0] for one in ids}) == len(scene_words())


@pytest.mark.parametrize(
    "text", ["the price is 37.", "Caf\u00e9 \u2603 100% n5x", "anna, rome and tea"]
)
def test_any_text_survives_the_tokenizer(text):
    tokenizer = load_tokenizer(f"zoo:{LANGUAGE_PART}")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_the_chat_template_writes_what_training_reads():
    tokenizer = load_tokenizer(f"zoo:{LANGUAGE_PART}")
    turns = (Turn("human", "What is written?"), Turn("gpt", "anna"))
    sample = Sample("s", "train", "chat", "chat", turns, (), (), "s", "CC0-1.0", ())
    trained = Codec(tokenizer, "plain_chat", 64, 64).encode(sample).input_ids
    messages = [
        {"role": "user", "content": "What is written?"},
        {"role": "assistant", "content": "anna"},
    ]
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer(written, add_special_tokens=False)["input_ids"] == trained.tolist()
    assert TEMPLATES["plain_chat"].end_token


def test_the_shipped_language_model_answers_written_out_scenes(starter):
    tokenizer = load_tokenizer(f"zoo:{LANGUAGE_PART}")
    model = load_language_model(f"zoo:{LANGUAGE_PART}").eval()
    samples = [one for one in starter.samples() if one.answers][:60]
    conversations = write_out(starter, samples, tokenizer, GRID)
    by_task = accuracy_from_text(model, conversations, tokenizer)
    weights = {task: sum(one.task == task for one in conversations) for task in by_task}
    right = sum(by_task[task] * weights[task] for task in by_task) / len(conversations)
    assert right >= FLOOR


def bytes_of(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", EXPERTS)
def test_an_expert_is_built_twice_alike(starter, tmp_path, name):
    plan = Plan(max_steps=5)
    train, held_out = (load_pictures(starter, split, GRID) for split in ("train", "val"))
    words = class_words(tmp_path / "absent")
    for run in ("one", "two"):
        accuracies = build_expert_part(tmp_path / run, name, (train, held_out), words, plan)
        assert set(accuracies) == {"digits", "shapes", "bars", "words", "numbers", "empty"}
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_the_language_model_is_built_twice_alike(starter, tmp_path):
    for run in ("one", "two"):
        build_language_part(tmp_path / run, starter, Plan(max_steps=5))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    card = (tmp_path / "one" / "README.md").read_text()
    assert "next-token prediction" in card


def test_questions_about_one_picture_become_one_conversation(starter):
    samples = starter.samples("train")
    merged = lessons(starter, samples, GRID, seed=0)
    single = [one for one in merged if len(one.images) == 1]
    assert len({one.images[0].id for one in single}) == len(single)
    asked = {turn.text for one in merged for turn in one.turns}
    assert {turn.text for one in samples for turn in one.turns if not one.images} <= asked
    assert all(one.turns[0].text.startswith("<image>\n") for one in single)
    assert all(turn.text.count("<image>") == 0 for one in single for turn in one.turns[1:])


SCENE = [
    [".", "n37", ".", "."],
    [".", "red_bar", "anna", "anna"],
    [".", "red_bar", ".", "."],
    ["4", "2", ".", "7"],
]


def test_lines_say_each_thing_once():
    assert lines(SCENE) == ["37", "red bar anna", "42 7"]


@pytest.mark.parametrize(
    ("row", "column", "direction", "found"),
    [
        (2, 1, "above", "37"),
        (1, 1, "right of", "anna"),
        (1, 3, "left of", "red bar"),
        (1, 3, "below", "7"),
        (0, 1, "above", "nothing"),
    ],
)
def test_looking_beside_a_thing(row, column, direction, found):
    assert look(SCENE, row, column, direction) == found


def test_a_scene_takes_the_place_of_its_picture(starter):
    samples = [one for one in starter.samples("train") if len(one.images) == 2][:1]
    tokenizer = tokenizer_for(starter.samples("train"))
    conversations = write_out(starter, samples, tokenizer, GRID)
    batch = splice(
        conversations, empty=0, pad=0, noise=CLEAN, generator=torch.Generator().manual_seed(0)
    )
    assert batch.is_scene_BN.sum() == 2 * GRID * GRID
    assert torch.equal(batch.input_ids_BN[batch.is_scene_BN], conversations[0].scenes_IS.flatten())
    assert (batch.labels_BN[batch.is_scene_BN] == -100).all()


def test_noise_changes_few_cells_and_only_to_words_nearby():
    scenes = torch.arange(64).repeat(50, 1)
    generator = torch.Generator().manual_seed(0)
    noisy = disturb(
        scenes, 0, Noise(dropped=0.1, copied=0.0, neighbour=0.0, blank_scene=0.0), generator
    )
    changed = noisy != scenes
    assert 0.05 < changed.float().mean() < 0.15
    assert (noisy[changed] == 0).all()


def test_the_learning_rate_rises_and_falls():
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10)
    shares = [share_at(step, schedule) for step in range(100)]
    assert shares.index(max(shares)) in {9, 10}
    assert shares[-1] < 0.01


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    for one in (matrices, matrices.mT):
        singular = torch.linalg.svdvals(orthogonalize(one))
        assert singular.min() > 0.5
        assert singular.max() < 1.3


REFUSED = {
    "a part that is unknown": (
        ["--parts", "nonsense", "--out", "out"],
        "Unknown part of the zoo 'nonsense': known are clip-tiny, convnext-tiny, eva02-tiny, "
        "llama-tiny, pix2struct-tiny, sam-tiny.\n",
    ),
    "a folder of somebody": (
        ["--parts", "clip-tiny", "--out", "mine"],
        "Cannot write to mine: it holds notes.md and is no result of manyeyes; give another "
        "folder with --out.\n",
    ),
}


@pytest.mark.parametrize(("given", "expected"), REFUSED.values(), ids=REFUSED)
def test_the_build_refuses_in_a_sentence(tmp_path, monkeypatch, capsys, given, expected):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/notes.md").write_text("x")
    assert build_parts(given) == 2
    assert capsys.readouterr().err == expected
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "notes.md"]
