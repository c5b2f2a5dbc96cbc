"""Bad input, one row each: the whole sentence, exit code 2, no traceback, nothing half-written."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from manyeyes.artifact import Header, is_finished, write_manifest
from manyeyes.cli import main
from manyeyes.model.encoders.registry import ENCODERS

ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes/tiny/eagle-x5.yaml"
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


def artifact(folder, kind, stage):
    folder.mkdir(parents=True)
    (folder / "file.txt").write_text("x")
    header = Header(
        kind=kind,
        stage=stage,
        name=stage,
        recipe_slice="",
        fingerprint="",
        parents={},
        code="",
        revision="",
        libraries={},
        seed=0,
    )
    write_manifest(folder, header)


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
VALIDATE = ["validate", "r.yaml", "--dataset", "d", "--out", "out"]
SFT = ["sft", "r.yaml", "--dataset", "d", "--validation", "v", "--checkpoint", "c", "--out", "out"]


def break_it(name, place):  # noqa: PLR0912, C901, PLR0915 - one arm per kind of bad input
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
        case "unknown expert" | "no recipe":
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
        "projector, llm, max_length; did you mean 'grid'?",
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
        "r.yaml: model.encoders.0.spec: Unknown encoder spec 'clip-tinny': known are "
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
        "WebP, GIF or BMP.",
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
        "c.json, record 1 (id 'a'): it holds <image> 2 times, but names 1 images; write it once for "
        "each.",
    ),
    ("empty answer", IMPORT, "c.json, record 1 (id 'a'): the answer in turn 2 is empty; fill it."),
    (
        "conversations that are not json",
        IMPORT,
        "c.json is not JSON: Expecting property name enclosed in double quotes at line 1, column 2; "
        "correct or export it again.",
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
]


@pytest.mark.parametrize(("name", "command", "expected"), CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_one_sentence_with_exit_code_2(name, command, expected, place, capsys):
    break_it(name, place)
    code = main(command)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.rstrip("\n") == expected
    assert "Traceback" not in printed.err
    assert not is_finished(place / "out")
    assert not [
        path for path in place.rglob("*") if path.name == "manifest.json" and "out" in path.parts
    ]
