"""Bad input, one row each: the whole sentence, exit code 2, no traceback, nothing half-written."""

import errno
import json
import os
import resource
import shutil
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path

import pytest
from model_kit import WORDS, write_llama
from PIL import Image
from track_kit import finish, write_model

from manyeyes.artifact.manifest import Header, is_finished, read_manifest, write_manifest
from manyeyes.artifact.provenance import revision
from manyeyes.cli import main
from manyeyes.model.encoders.registry import ENCODERS

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/recipes/long.yaml"
ZOO = ROOT / "manyeyes/model/weights/zoo/weights"
pytestmark = pytest.mark.faults


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a good recipe, three good images and a good conversation file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    shutil.copy(TINY, tmp_path / "r.yaml")
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (32, 32), (index * 90, 10, 10)).save(f"images/{index}.png")
    write_conversations(tmp_path, [record()])
    return tmp_path


def record(**changes):
    base = {
        "id": "a",
        "image": "0.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "red"},
        ],
    }
    return {**base, **changes}


def write_conversations(place, records):
    (place / "c.json").write_text(json.dumps(records), encoding="utf-8")


def turns(*pairs):
    return [{"from": speaker, "value": text} for speaker, text in pairs]


def edit(place, old, new):
    path = place / "r.yaml"
    path.write_text(path.read_text().replace(old, new, 1))


def artifact(folder, kind, stage, **parents):
    folder.mkdir(parents=True)
    (folder / "file.txt").write_text("x")
    header = Header(
        kind=kind,
        stage=stage,
        name=stage,
        recipe_slice="",
        fingerprint="",
        parents=parents,
        code="",
        revision="",
        libraries={},
        seed=0,
    )
    write_manifest(folder, header)


def edit_manifest(folder, **changes):
    """Change what a finished artifact says of itself."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def foreign_tokenizer(folder, source):
    """Put the tokenizer of another model into a finished checkpoint."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)


def other_end(folder):
    """Let the tokenizer of a checkpoint end at a word at which its model does not stop."""
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"eos_token": "</s>"', '"eos_token": "red"'))


def cut(path):
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def full_disk_at_sync(*_):
    """Stand for a disk that says it is full when what was written is to be kept."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


LARGEST_FILE = 20_000
"""Bytes a file may have in the rows about space; the kernel refuses more, whoever writes it."""


@contextmanager
def largest_file(size):
    """Let this process write no larger file meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def huge_png(path, side):
    """Write the header of a PNG of this size; no such picture needs to exist."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = zlib.compress(b"\0" * 1000)
    body = b"IDAT" + data
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk
        + struct.pack(">I", len(data))
        + body
        + struct.pack(">I", zlib.crc32(body))
    )


CHECK = ["check", "r.yaml"]
IMPORT = ["data", "import", "c.json", "--images", "images", "--licence", "CC0-1.0", "--out", "out"]
STARTER = ["data", "starter", "--scale", "0.01", "--out", "out"]
VALIDATE = ["validate", "r.yaml", "--dataset", "d", "--out", "out"]
PREPARE = ["prepare", "r.yaml", "--out", "out"]
PREALIGN = ["prealign", "r.yaml", "--expert", "clip", "--dataset", "d", "--validation", "v",
            "--out", "out"]  # fmt: skip
CHAT = ["chat", "c", "--question", "what is this"]
SFT = ["sft", "r.yaml", "--dataset", "d", "--validation", "v", "--checkpoint", "c", "--out", "out"]


def import_data(place):
    """Import a dataset that can be trained on, with a report that finds nothing wrong."""
    answer = main(["data", "import", "c.json", "--images", "images", "--licence", "CC0-1.0",
                   "--out", "d"])  # fmt: skip
    assert answer == 0
    dataset = read_manifest(place / "d").digest
    artifact(place / "v", "report", "validate", dataset=dataset)


def break_it(name, place, monkeypatch):  # noqa: PLR0912, C901, PLR0915 - one arm per kind of bad input
    images = place / "images"
    match name:
        case "misspelt key":
            edit(place, "  grid: 8", "  gird: 8")
        case "wrong type":
            edit(place, "seed: 7", "seed: '7'")
        case "duplicate key":
            edit(place, "seed: 7", "seed: 7\nseed: 8")
        case "not yaml":
            (place / "r.yaml").write_text("name: [unclosed\n")
        case "unknown encoder":
            edit(place, "spec: clip-tiny", "spec: clip-tinny")
        case "batch that does not divide":
            edit(place, "size: 32", "size: 30")
        case "visual tokens that do not fit":
            edit(place, "grid: 8", "grid: 16")
        case "missing image":
            write_conversations(place, [record(image="9.png")])
        case "truncated image":
            data = (images / "0.png").read_bytes()
            (images / "0.png").write_bytes(data[: len(data) // 2])
        case "not an image":
            (images / "0.png").write_text("hello")
        case "image outside by ..":
            Image.new("RGB", (8, 8)).save(place / "secret.png")
            write_conversations(place, [record(image="../secret.png")])
        case "image outside by symlink":
            Image.new("RGB", (8, 8)).save(place / "secret.png")
            (images / "0.png").unlink()
            (images / "0.png").symlink_to(place / "secret.png")
        case "huge image":
            huge_png(images / "0.png", 30_000)
        case "roles that do not alternate":
            write_conversations(
                place, [record(conversations=turns(("human", "<image>\na"), ("human", "b")))]
            )
        case "two image tokens for one image":
            write_conversations(
                place,
                [record(conversations=turns(("human", "<image><image>\na"), ("gpt", "b")))],
            )
        case "empty answer":
            write_conversations(
                place, [record(conversations=turns(("human", "<image>\na"), ("gpt", " ")))]
            )
        case "conversations that are not json":
            (place / "c.json").write_text("{")
        case "wrong kind of artifact":
            artifact(place / "d", "dataset", "prepare")
            artifact(place / "v", "report", "validate")
            artifact(place / "c", "report", "eval")
        case "unfinished artifact":
            artifact(place / "d", "dataset", "prepare")
            (place / "d/manifest.json").unlink()
        case "damaged artifact":
            artifact(place / "d", "dataset", "prepare")
            (place / "d/file.txt").write_text("y")
        case "full disk at the end of a stage":
            edit(place, "scale: 1.0", "scale: 0.01")
            monkeypatch.setattr(os, "fsync", full_disk_at_sync)
        case "no space for an import":
            noise = os.urandom(100 * 100 * 3)
            Image.frombytes("RGB", (100, 100), noise).save(images / "0.png")
        case "foreign tokenizer in a checkpoint":
            write_model(place / "c")
            foreign_tokenizer(place / "c", ZOO / "llama-tiny")
        case "foreign tokenizer with a manifest of its own":
            write_model(place / "c")
            foreign_tokenizer(place / "c", ZOO / "llama-tiny")
            finish(place / "c")
        case "tokenizer with another end":
            write_model(place / "c")
            other_end(place / "c")
            finish(place / "c")
        case "foreign tokenizer beside a language model":
            write_llama(place / "llm", vocab_size=len(WORDS))
            foreign_tokenizer(place / "llm", ZOO / "llama-tiny")
            edit(place, "weights: zoo:llama-tiny", "weights: ./llm")
            import_data(place)
        case "truncated weights in a checkpoint":
            write_model(place / "c")
            cut(place / "c/llm.safetensors")
        case "truncated weights with a manifest of their own":
            write_model(place / "c")
            cut(place / "c/encoders.clip.safetensors")
            finish(place / "c")
        case "truncated weights of an expert":
            shutil.copytree(ZOO / "clip-tiny", place / "clip")
            cut(place / "clip/model.safetensors")
            edit(place, "weights: zoo:clip-tiny", "weights: ./clip")
            import_data(place)
        case "truncated weights of the language model":
            shutil.copytree(ZOO / "llama-tiny", place / "llm")
            cut(place / "llm/model.safetensors")
            edit(place, "weights: zoo:llama-tiny", "weights: ./llm")
            import_data(place)
        case "foreign manifest":
            artifact(place / "d", "dataset", "prepare")
            (place / "d/manifest.json").write_text('{"name": "an app", "icons": []}')
        case "manifest that is not text":
            artifact(place / "d", "dataset", "prepare")
            (place / "d/manifest.json").write_bytes(b"\xff\xfe\x00")
        case "manifest of another artifact":
            artifact(place / "d", "dataset", "prepare")
            write_model(place / "c")
            shutil.copy(place / "c/manifest.json", place / "d/manifest.json")
            edit_manifest(place / "d", kind="dataset")
        case "manifest of a later format":
            artifact(place / "d", "dataset", "prepare")
            edit_manifest(place / "d", format=2, news="a key we do not know")
        case "manifest that leads outside":
            artifact(place / "d", "dataset", "prepare")
            entry = {"size": 1, "sha256": "0", "md5": "0"}
            edit_manifest(place / "d", files={"../r.yaml": entry})
        case "unknown part of the zoo":
            edit(place, "weights: zoo:sam-tiny", "weights: zoo:sam-tinny")
            edit(place, "weights: zoo:llama-tiny", "weights: zoo:manifest.json")
        case "unknown part of the zoo in a run":
            edit(place, "weights: zoo:clip-tiny", "weights: zoo:nonsense")
        case "negative seed" | "no new tokens" | "chat without a question":
            pass
        case "unknown expert" | "no recipe" | "no space for data" | "unknown part to build":
            pass
        case "unwritable folder":
            (place / "closed").write_text("")
        case _:
            raise AssertionError(name)


CASES = [
    (
        "misspelt key",
        CHECK,
        "r.yaml:7: model.grid: this key is required and missing\n"
        "r.yaml:25: model.gird: unknown key; allowed are encoders, grid, normalization, fusion, "
        "projector, llm, max_length, alignment; did you mean 'grid'?",
    ),
    ("wrong type", CHECK, "r.yaml:5: seed: input should be a valid integer, got '7'"),
    (
        "duplicate key",
        CHECK,
        'r.yaml:6: this is not valid YAML: found duplicate key "seed" with '
        'value "8" (original value: "7").',
    ),
    (
        "not yaml",
        CHECK,
        "r.yaml:2: this is not valid YAML: expected ',' or ']', but got '<stream end>'.",
    ),
    ("no recipe", ["check", "none.yaml"], "No recipe at none.yaml: give the path of a .yaml file."),
    (
        "unknown encoder",
        CHECK,
        "r.yaml:11: model.encoders.0.spec: Unknown encoder spec 'clip-tinny': known are "
        f"{', '.join(sorted(ENCODERS))}; did you mean 'clip-tiny'?",
    ),
    (
        "batch that does not divide",
        CHECK,
        "r.yaml:59: prealign.experts.clip.batch: size 30 is not a multiple of per_device x "
        "accumulation = 32; size 32 would be",
    ),
    (
        "visual tokens that do not fit",
        CHECK,
        "r.yaml:7: model: grid 16 makes 256 visual tokens, which leaves no room for text in "
        "max_length 256; raise max_length or lower grid",
    ),
    (
        "unknown expert",
        [
            "prealign",
            "r.yaml",
            "--expert",
            "clop",
            "--dataset",
            "d",
            "--validation",
            "v",
            "--out",
            "out",
        ],
        "Unknown expert 'clop': known are clip, convnext, eva02, pix2struct, sam; "
        "did you mean 'clip'?",
    ),
    (
        "missing image",
        IMPORT,
        "c.json, record 1 (id 'a'), image '9.png': there is no such file in images; add it.",
    ),
    (
        "truncated image",
        IMPORT,
        "c.json, record 1 (id 'a'), image '0.png': the picture is truncated or damaged and cannot be "
        "decoded; fetch or write it again.",
    ),
    (
        "not an image",
        IMPORT,
        "c.json, record 1 (id 'a'), image '0.png': the file is not a picture; give it as PNG, JPEG, "
        "WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO or PPM.",
    ),
    (
        "image outside by ..",
        IMPORT,
        "c.json, record 1 (id 'a'), image '../secret.png': its path leads outside with '..'; keep it "
        "below images.",
    ),
    (
        "image outside by symlink",
        IMPORT,
        "c.json, record 1 (id 'a'), image '0.png': a symbolic link leads outside images; copy the "
        "file there.",
    ),
    (
        "huge image",
        IMPORT,
        "c.json, record 1 (id 'a'), image '0.png': it has 30000 x 30000 pixels, more than 64000000 in "
        "all; make it smaller.",
    ),
    (
        "roles that do not alternate",
        IMPORT,
        "c.json, record 1 (id 'a'): the speakers are human, human, but human and gpt must alternate, "
        "human first and gpt last; correct or remove it.",
    ),
    (
        "two image tokens for one image",
        IMPORT,
        "c.json, record 1 (id 'a'): its questions hold <image> 2 times, but it names 1 images; "
        "write it once for each, and the word itself in another way.",
    ),
    ("empty answer", IMPORT, "c.json, record 1 (id 'a'): the answer in turn 2 is empty; fill it."),
    (
        "conversations that are not json",
        IMPORT,
        "c.json, line 1: this is not JSON: Expecting property name enclosed in double quotes at line "
        "1, column 2; correct or export it again.",
    ),
    ("wrong kind of artifact", SFT, "c holds a report (made by eval), but a checkpoint is needed."),
    (
        "unfinished artifact",
        VALIDATE,
        "d is not a finished artifact: it has no manifest.json. "
        "Run the stage that makes it again; it continues where it stopped.",
    ),
    (
        "damaged artifact",
        VALIDATE,
        "d/file.txt does not match the sha256 in the manifest; fetch the artifact again or run its "
        "stage again.",
    ),
    (
        "unwritable folder",
        ["prepare", "r.yaml", "--out", "closed"],
        "Cannot write to closed: it is a file; give the path of a directory.",
    ),
    (
        "no space for data",
        STARTER,
        "There is no room to write out (File too large): raise the limit (ulimit -f) or give "
        "another folder with --out.",
    ),
    (
        "no space for an import",
        IMPORT,
        "There is no room to write out (File too large): raise the limit (ulimit -f) or give "
        "another folder with --out.",
    ),
    (
        "full disk at the end of a stage",
        PREPARE,
        "There is no room to write {place}/home (No space left on device): free some space and run "
        "the same command again; what was finished is kept.",
    ),
    (
        "foreign tokenizer in a checkpoint",
        CHAT,
        "c/tokenizer.json has 36500 bytes, but the manifest says 1582; fetch the artifact again or "
        "run its stage again.",
    ),
    (
        "foreign tokenizer with a manifest of its own",
        CHAT,
        "The tokenizer of 'c' is of another model: it has the id 706, but the embedding table has "
        "12 rows.",
    ),
    (
        "tokenizer with another end",
        CHAT,
        "The tokenizer of 'c' is of another model: its end token has the id 7, but the model stops "
        "at 2.",
    ),
    (
        "foreign tokenizer beside a language model",
        PREALIGN,
        "r.yaml:32: model.llm.weights: The tokenizer of './llm' is of another model: it has the id "
        "706, but the embedding table has 12 rows.",
    ),
    (
        "truncated weights in a checkpoint",
        CHAT,
        "c/llm.safetensors has 43096 bytes, but the manifest says 86192; fetch the artifact again "
        "or run its stage again.",
    ),
    (
        "truncated weights with a manifest of their own",
        CHAT,
        "{place}/c/encoders.clip.safetensors is not a whole safetensors file (Error while "
        "deserializing header: incomplete metadata, file not fully covered): copy or build it "
        "again.",
    ),
    (
        "truncated weights of an expert",
        PREALIGN,
        "r.yaml:12: model.encoders.0.weights: clip/model.safetensors is not a whole safetensors "
        "file (Error while deserializing header: incomplete metadata, file not fully covered): "
        "copy or build it again.",
    ),
    (
        "truncated weights of the language model",
        PREALIGN,
        "r.yaml:32: model.llm.weights: llm/model.safetensors is not a whole safetensors file "
        "(Error while deserializing header: incomplete metadata, file not fully covered): copy or "
        "build it again.",
    ),
    (
        "foreign manifest",
        VALIDATE,
        "d/manifest.json is damaged: it is not a manifest of format 1; fetch the artifact again or "
        "run its stage again.",
    ),
    (
        "manifest that is not text",
        VALIDATE,
        "Cannot read d/manifest.json (it is not text); fetch the artifact again or run its stage "
        "again.",
    ),
    (
        "manifest of another artifact",
        VALIDATE,
        "d/config.json is missing, though the manifest lists it; fetch the artifact again or run "
        "its stage again.",
    ),
    (
        "manifest of a later format",
        VALIDATE,
        "d/manifest.json has format 2, but this manyeyes reads 1; use the version that wrote it.",
    ),
    (
        "manifest that leads outside",
        VALIDATE,
        "d/manifest.json was changed: it lists '../r.yaml', which lies outside; fetch the artifact "
        "again or run its stage again.",
    ),
    (
        "unknown part of the zoo",
        CHECK,
        "r.yaml:18: model.encoders.2.weights: Unknown part of the zoo 'sam-tinny': known are "
        "clip-tiny, convnext-tiny, eva02-tiny, llama-tiny, pix2struct-tiny, sam-tiny; did you mean "
        "'sam-tiny'?\n"
        "r.yaml:32: model.llm.weights: Unknown part of the zoo 'manifest.json': known are clip-tiny, "
        "convnext-tiny, eva02-tiny, llama-tiny, pix2struct-tiny, sam-tiny.",
    ),
    (
        "unknown part of the zoo in a run",
        ["run", "r.yaml"],
        "r.yaml:12: model.encoders.0.weights: Unknown part of the zoo 'nonsense': known are "
        "clip-tiny, convnext-tiny, eva02-tiny, llama-tiny, pix2struct-tiny, sam-tiny.",
    ),
    ("negative seed", [*STARTER, "--seed", "-1"], "--seed is -1; give 0 or more."),
    (
        "no new tokens",
        [*CHAT, "--max-new-tokens", "0"],
        "--max-new-tokens is 0; give 1 or more.",
    ),
    (
        "chat without a question",
        ["chat", "c", "--json"],
        "--json prints one answer: give the question with --question.",
    ),
]


@pytest.mark.parametrize(("name", "command", "expected"), CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_one_sentence_with_exit_code_2(
    name, command, expected, place, monkeypatch, capsys
):  # fmt: skip
    break_it(name, place, monkeypatch)
    capsys.readouterr()
    revision()  # asked of git now, whose files must not be cut
    with largest_file(LARGEST_FILE if name.startswith("no space") else None):
        code = main(command)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.rstrip("\n") == expected.replace("{place}", str(place))
    assert printed.out == ""
    assert not is_finished(place / "out")
    made = [*place.glob("out/**/manifest.json"), *place.glob("home/**/manifest.json")]
    assert made == []
