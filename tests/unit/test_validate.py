"""Planted faults, one per rule: each must be found, named, and nothing else with it."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from manyeyes.config.recipe import ValidateSection
from manyeyes.data.contract.profile import profile
from manyeyes.data.contract.rules import rules
from manyeyes.data.contract.validate import find_breaches, quarantined_ids, validate
from manyeyes.data.dataset.dataset import Dataset, DatasetWriter, Sample, Turn
from manyeyes.errors import GateRefused, UserError
from manyeyes.runtime.progress import Progress

SECTION = ValidateSection(
    max_quarantined=0.5, min_samples=2, max_image_pixels=1000, max_turns=4, max_characters=60,
    licences=("CC0-1.0",),
)  # fmt: skip


def png(colour, size=(8, 8), note=""):
    file = io.BytesIO()
    text = PngInfo()
    if note:
        text.add_text("Comment", note)
    Image.new("RGB", size, colour).save(file, "PNG", pnginfo=text)
    return file.getvalue()


def talk(*texts):
    return tuple(Turn(("human", "gpt")[n % 2], text) for n, text in enumerate(texts))


ASK = "<image>\nWhat colour?"


class Kit:
    """A dataset of four good samples with pictures and two without, to be spoilt."""

    def __init__(self, folder):
        self.folder = folder
        with DatasetWriter(folder) as writer:
            refs = [writer.add_image(png((n, 9, 9)), f"p{n}") for n in range(4)]
            for n, ref in enumerate(refs):
                split = "train" if n < 2 else ("val", "test")[n - 2]
                writer.add(sample(f"s{n}", split, talk(ASK, f"colour {n}"), (ref,)))
            writer.add(sample("s4", "train", talk("Hello?", "Hi."), ()))
            writer.add(sample("s5", "train", talk("Hello?", "Ho.", "And?", "Hum."), ()))

    def rows(self):
        return pq.read_table(self.folder / "samples.parquet").to_pylist()

    def write(self, rows):
        schema = pq.read_schema(self.folder / "samples.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema), self.folder / "samples.parquet")

    def spoil(self, row, **changes):
        rows = self.rows()
        rows[row].update(changes)
        self.write(rows)

    def spoil_image(self, row, **changes):
        rows = self.rows()
        rows[row]["images"][0].update(changes)
        self.write(rows)


def sample(name, split, turns, images, **changes):
    made = Sample(
        id=name, split=split, task="scenes" if images else "chat", subset="", turns=turns,
        images=images, answers=(), source="drawn", licence="CC0-1.0", entities=(f"{split}-{name}",),
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def kit(tmp_path):
    return Kit(tmp_path / "dataset")


def run(kit, tmp_path, section=SECTION, name="report"):
    return validate(kit.folder, section, tmp_path / name, Progress("validate"))


def quarantine(tmp_path):
    rows = pq.read_table(tmp_path / "report/quarantine.parquet").to_pylist()
    return [(row["id"], row["reason"], row["detail"]) for row in rows]


def turns_json(*pairs):
    return json.dumps([{"from": who, "value": text} for who, text in pairs])


def truncate_shard(kit):
    (shard,) = (kit.folder / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    place = kit.rows()[3]["images"][0]
    data[place["offset"] + 60 : place["offset"] + place["size"]] = bytes(place["size"] - 60)
    shard.write_bytes(data)


def truncate_picture(kit):
    """Cut the picture before it is stored: its sha256 is right, its pixels are not."""
    rows = kit.rows()
    with DatasetWriter(kit.folder) as writer:
        for row in rows[:4]:
            data = png((rows.index(row), 9, 9), (30, 30))
            cut = data[: len(data) - 30] if row["id"] == "s3" else data
            ref = writer.add_image(cut, f"p{row['id']}")
            row["images"] = [vars(ref)]
    kit.write(rows)


def enlarge_picture(kit):
    rows = kit.rows()
    with DatasetWriter(kit.folder) as writer:
        for row in rows[:4]:
            size = (30_000, 1) if row["id"] == "s3" else (8, 8)
            ref = writer.add_image(png((rows.index(row), 9, 9), size), f"p{row['id']}")
            row["images"] = [vars(ref)]
    kit.write(rows)


def show_again(kit, row, like, *, say_the_same=False, size=(8, 8)):
    """Let a sample show the pixels of another one, from a file with other bytes."""
    rows = kit.rows()
    with DatasetWriter(kit.folder) as writer:
        for number, each in enumerate(rows[:4]):
            same = like if number == row else number
            colour = (same, 9, 9)
            data = png(colour, size if same == like else (8, 8))
            if number == row:
                data = png(colour, size, note="scanned again")
            each["images"] = [vars(writer.add_image(data, f"p{number}"))]
    if say_the_same:
        rows[row]["conversations"] = rows[like]["conversations"]
    kit.write(rows)
    assert rows[row]["images"][0]["sha256"] != rows[like]["images"][0]["sha256"]


FAULTS = {
    "double id": (
        lambda kit: kit.spoil(4, id="s5"),
        [("s5", "id", "not true that every sample has an id of its own")] * 2,
    ),
    "unknown split": (
        lambda kit: kit.spoil(4, split="dev"),
        [("s4", "split", "'dev' is not one of train, val, test")],
    ),
    "no split": (
        lambda kit: kit.spoil(4, split=None),
        [("s4", "split", "'' is not one of train, val, test")],
    ),
    "licence": (
        lambda kit: kit.spoil(4, licence="proprietary"),
        [("s4", "licence", "'proprietary' is not one of CC0-1.0")],
    ),
    "no licence": (
        lambda kit: kit.spoil(4, licence=None),
        [("s4", "licence", "'' is not one of CC0-1.0")],
    ),
    "not JSON": (
        lambda kit: kit.spoil(0, conversations="[{"),
        [("s0", "conversation", "not true that the conversation is a list of turns")],
    ),
    "no turns": (
        lambda kit: kit.spoil(0, conversations="[]"),
        [("s0", "conversation", "not true that the conversation is a list of turns")],
    ),
    "unknown speaker": (
        lambda kit: kit.spoil(0, conversations=turns_json(("human", ASK), ("user", "x"))),
        [("s0", "conversation", "not true that the conversation is a list of turns")],
    ),
    "two questions": (
        lambda kit: kit.spoil(4, conversations=turns_json(("human", "a"), ("human", "b"))),
        [("s4", "roles", "the speakers are human, human")],
    ),
    "no last answer": (
        lambda kit: kit.spoil(
            4, conversations=turns_json(("human", "a"), ("gpt", "b"), ("human", "c"))
        ),
        [("s4", "roles", "the speakers are human, gpt, human")],
    ),
    "empty answer": (
        lambda kit: kit.spoil(4, conversations=turns_json(("human", "a"), ("gpt", " \n"))),
        [("s4", "empty_text", "not true that no question or answer is empty")],
    ),
    "two placeholders": (
        lambda kit: kit.spoil(
            0, conversations=turns_json(("human", "<image><image>a"), ("gpt", "b"))
        ),
        [("s0", "placeholders", "2 <image> in questions, but 1 images")],
    ),
    "no placeholder": (
        lambda kit: kit.spoil(0, conversations=turns_json(("human", "a"), ("gpt", "b"))),
        [("s0", "placeholders", "0 <image> in questions, but 1 images")],
    ),
    "many turns": (
        lambda kit: kit.spoil(4, conversations=turns_json(*[("human", "a"), ("gpt", "b")] * 3)),
        [("s4", "num_turns", "6 is not from 2 to 4")],
    ),
    "many characters": (
        lambda kit: kit.spoil(4, conversations=turns_json(("human", "a"), ("gpt", "b" * 60))),
        [("s4", "num_characters", "61 is not from 1 to 60")],
    ),
    "changed picture": (
        truncate_shard,
        [("s3", "image", "the picture at byte {3} in {shards}/images-00000.tar: the bytes do not "
          "have the recorded sha256; fetch it again.")],
    ),
    "truncated picture": (
        truncate_picture,
        [("s3", "image", "the picture at byte {3}: the picture is truncated or damaged and cannot "
          "be decoded; fetch or write it again.")],
    ),
    "place outside the shard": (
        lambda kit: kit.spoil_image(3, offset=10**9),
        [("s3", "image", "the picture at byte 1000000000 in {shards}/images-00000.tar: the shard "
          "ends before the picture; fetch it again.")],
    ),
    "negative size": (
        lambda kit: kit.spoil_image(3, size=-5),
        [("s3", "image", "the place {3}+-5 is not in the shard images-00000.tar")],
    ),
    "shard elsewhere": (
        lambda kit: kit.spoil_image(3, shard="../samples.parquet"),
        [("s3", "image", "the picture at byte {3}: its shard '../samples.parquet' lies outside "
          "{shards}; shards are files in that folder.")],
    ),
    "no shard": (
        lambda kit: kit.spoil_image(3, shard=None),
        [("s3", "image", "the index lacks its shard")],
    ),
    "large picture": (
        enlarge_picture,
        [("s3", "image_pixels", "30000 is not from 0 to 1000")],
    ),
    "untrue size": (
        lambda kit: kit.spoil_image(3, width=9),
        [("s3", "image_size", "the index says 9 x 8, the picture is 8 x 8")],
    ),
    "duplicate": (
        lambda kit: kit.spoil(5, conversations=kit.rows()[4]["conversations"]),
        [("s5", "duplicate", "the same as sample number 4")],
    ),
    "duplicate of a test sample": (
        lambda kit: kit.spoil(4, split="test") or kit.spoil(5, conversations=kit.rows()[4][
            "conversations"]),
        [("s5", "duplicate", "the same as sample number 4")],
    ),
    **{
        f"duplicate but for {what}": (
            lambda kit, text=text: kit.spoil(
                5, conversations=turns_json(("human", text), ("gpt", "Hi."))
            ),
            [("s5", "duplicate", "the same as sample number 4")],
        )
        for what, text in {
            "a space at the end": "Hello? ",
            "spaces inside": " Hello\u00a0?".replace("\u00a0", ""),
            "case": "HELLO?",
            "wide letters": "\uff28ello?",
            "a line break": "\nHello?\n",
        }.items()
    },
    "duplicate but for the picture's file": (
        lambda kit: show_again(kit, 1, 0, say_the_same=True),
        [("s1", "duplicate", "the same as sample number 0")],
    ),
    "leaked pixels in another file": (
        lambda kit: show_again(kit, 0, 3),
        [("s0", "leaked_image", "image {sha0} is also in test")],
    ),
    "leaked pixels under another size limit": (
        lambda kit: show_again(kit, 0, 3, size=(40, 40)),
        [
            ("s0", "image_pixels", "1600 is not from 0 to 1000"),
            ("s3", "image_pixels", "1600 is not from 0 to 1000"),
        ],
    ),
    "leaked image": (
        lambda kit: kit.spoil(0, images=kit.rows()[3]["images"]),
        [("s0", "leaked_image", "image {sha3} is also in test")],
    ),
    "leaked entity": (
        lambda kit: kit.spoil(1, entities=["mine", "val-s2"]),
        [("s1", "leaked_entity", "entity val-s2 is also in val")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(kit, fault):
    plant, expected = FAULTS[fault]
    plant(kit)
    seen = profile(Dataset.open(kit.folder), SECTION.max_image_pixels, Progress("validate"))
    found = find_breaches(seen, rules(SECTION))
    image = kit.rows()[3]["images"][0]
    first = kit.rows()[0]["images"][0]
    filled = [
        (name, reason, detail.replace("{3}", str(image["offset"]))
         .replace("{shards}", f"{kit.folder}/shards").replace("{sha3}", image["sha256"])
         .replace("{sha0}", first["sha256"]))
        for name, reason, detail in expected
    ]  # fmt: skip
    assert [(breach.id, breach.reason, breach.detail) for breach in found] == filled


def test_samples_that_spell_control_tokens_pass_and_are_counted(kit, tmp_path):
    kit.spoil(4, conversations=turns_json(("human", "a </s> b"), ("gpt", "c <|im_end|>")))
    result = run(kit, tmp_path)
    assert (result.passed, result.num_quarantined) == (True, 0)
    assert result.details()["samples_with_control_tokens"] == 1
    page = (tmp_path / "report/report.html").read_text()
    assert "1 samples hold what is spelled like a control token" in page


def test_good_data_passes_with_an_empty_quarantine(kit, tmp_path):
    result = run(kit, tmp_path)
    assert result.details() == json.loads((tmp_path / "report/metrics.json").read_text())
    assert result.details() == {
        "verdict": "passed",
        "samples": 6,
        "pictures": 4,
        "quarantined": 0,
        "share_quarantined": 0.0,
        "kept": 6,
        "reasons": {},
        "samples_with_control_tokens": 0,
        "splits": {
            "test": {"scenes": 1}, "train": {"chat": 2, "scenes": 2}, "val": {"scenes": 1},
        },
        "licences": {"CC0-1.0": 6},
        "refusals": [],
    }  # fmt: skip
    assert quarantined_ids(tmp_path / "report") == frozenset()


def test_one_sample_with_two_faults_has_two_rows_and_counts_once(kit, tmp_path):
    kit.spoil(4, licence="x", conversations=turns_json(("human", "a"), ("gpt", "")))
    result = run(kit, tmp_path)
    assert [(name, reason) for name, reason, _ in quarantine(tmp_path)] == [
        ("s4", "licence"),
        ("s4", "empty_text"),
    ]
    assert result.num_quarantined == 1


REFUSALS = {
    "too many bad": (
        {"max_quarantined": 0.1},
        "The data contract is broken: 2 of 6 samples (33.33%) are quarantined, more than the "
        "10.00% that validate.max_quarantined allows (image_size 1, licence 1).",
    ),
    "too few left": (
        {"min_samples": 5},
        "The data contract is broken: 4 samples are left, fewer than the 5 that "
        "validate.min_samples asks for.",
    ),
    "both": (
        {"max_quarantined": 0.0, "min_samples": 5},
        "The data contract is broken: 2 of 6 samples (33.33%) are quarantined, more than the "
        "0.00% that validate.max_quarantined allows (image_size 1, licence 1); 4 samples are left, "
        "fewer than the 5 that validate.min_samples asks for.",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_the_gate_refuses_after_it_has_written_the_report(kit, tmp_path, case):
    changes, expected = REFUSALS[case]
    kit.spoil(4, licence="x")
    kit.spoil_image(3, width=9)
    with pytest.raises(GateRefused) as caught:
        run(kit, tmp_path, SECTION.model_copy(update=changes))
    assert str(caught.value) == expected
    report = tmp_path / "report"
    assert json.loads((report / "metrics.json").read_text())["verdict"] == "refused"
    assert not json.loads((report / "expectations.json").read_text())["success"]
    assert quarantined_ids(report) == {"s3", "s4"}
    page = (report / "report.html").read_text()
    assert "the index says 9 x 8, the picture is 8 x 8" in page
    assert "http" not in page


def test_a_dataset_without_samples_is_refused(kit, tmp_path):
    kit.write([])
    with pytest.raises(GateRefused) as caught:
        run(kit, tmp_path)
    assert str(caught.value) == "The data contract is broken: the dataset holds no samples."


def test_the_same_data_gives_the_same_bytes(kit, tmp_path):
    kit.spoil(4, licence="x")
    run(kit, tmp_path)
    run(kit, tmp_path, name="again")
    for path in (tmp_path / "report").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_text_of_the_data_is_escaped_in_the_report(kit, tmp_path):
    kit.spoil(4, licence="<script>alert(1)</script>")
    run(kit, tmp_path)
    assert "<script>" not in (tmp_path / "report/report.html").read_text()


def test_a_column_of_another_type_is_refused(kit, tmp_path):
    path = kit.folder / "samples.parquet"
    table = pq.read_table(path)
    spoilt = pa.array([1] * table.num_rows)
    pq.write_table(table.set_column(5, "images", spoilt), path)
    with pytest.raises(UserError) as caught:
        run(kit, tmp_path)
    assert str(caught.value) == (
        f"{path}: the column images has the type int64, but list<item: struct<id: "
        "string, shard: string, offset: int64, size: int64, sha256: string, width: int64, height: "
        "int64>> is needed; make the dataset again."
    )


def test_a_report_without_a_quarantine_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        quarantined_ids(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/quarantine.parquet is not a readable quarantine; "
        "run 'manyeyes validate' again."
    )


def test_reading_a_quarantine_does_not_import_great_expectations():
    code = "import sys, manyeyes.data.contract.validate; print('great_expectations' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert printed == "False\n"
