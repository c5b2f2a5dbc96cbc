"""Every kind of bad record: one sentence, nothing left behind."""

import errno
import io
import json
import os
import struct
import zlib
from pathlib import PurePosixPath

import pyarrow.parquet as pq
import pytest
from PIL import Image

from manyeyes.artifact.manifest import open_artifact
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.sources import importing
from manyeyes.data.sources.importing import import_llava
from manyeyes.errors import UserError


def png(colour=(1, 2, 3), size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def huge_png():
    """A 30,000 x 30,000 picture of one colour: 330 kB here, 2.7 GB decoded."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def talk(*texts):
    return [
        {"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)
    ]


GOOD = talk("<image>\nWhat is it?", "A square.")


@pytest.fixture
def place(tmp_path):
    """A folder of pictures with everything a record could wrongly point at."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    (images / "a.png").write_bytes(png())
    (images / "sub/b.png").write_bytes(png((9, 9, 9)))
    (images / "same.png").write_bytes(png())
    (images / "cut.png").write_bytes(png(size=(40, 40))[:-40])
    (images / "huge.png").write_bytes(huge_png())
    (images / "text.png").write_text("no picture")
    (images / "empty.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(png())
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (images / "inside.png").symlink_to(images / "a.png")
    return tmp_path


def write(place, records, name="talks.json"):
    file = place / name
    if name.endswith(".jsonl"):
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        file.write_text(records if isinstance(records, str) else json.dumps(records))
    return file


def run(place, file, **changes):
    return import_llava(file, place / "images", place / "out", **{"licence": "CC0-1.0", **changes})


def left_behind(place):
    return sorted(path.name for path in place.iterdir() if path.name.lstrip(".").startswith("out"))


RECORD = {"id": "a", "image": "a.png", "conversations": GOOD}


def test_good_records_become_a_dataset(place):
    records = [
        RECORD,
        {"id": 7, "image": ["sub/b.png", "same.png"], "split": "test", "task": "shapes",
         "conversations": talk("<image><image>Same?", "No."), "answers": ["no", "No."],
         "entities": ["x"]},
        {"image": "inside.png", "conversations": talk("What is it?", "A", "Sure?", "Yes.")},
        {"id": "text", "conversations": talk("Hello?", "Hi."), "model": "ignored"},
    ]  # fmt: skip
    manifest = run(place, write(place, records), source="mine")
    assert open_artifact(place / "out", "dataset").digest == manifest.digest
    assert manifest.details == {
        "samples": 4,
        "images": 2,
        "counts": {"test.shapes": 1, "train.mine": 3},
        "quarantined": 0,
        "placeholders_added": 1,
        "keys_not_read": {"model": 1},
    }
    dataset = Dataset.open(place / "out")
    samples = {sample.id: sample for sample in dataset.samples()}
    assert list(samples) == ["a", "7", "talks-0000003", "text"]
    assert [len(sample.images) for sample in samples.values()] == [1, 2, 1, 0]
    assert samples["a"].images == samples["talks-0000003"].images
    assert samples["7"].answers == ("no", "No.")
    assert samples["talks-0000003"].turns[0].text == "<image>\nWhat is it?"
    assert samples["talks-0000003"].answers == ("Yes.",)
    assert {sample.licence for sample in samples.values()} == {"CC0-1.0"}
    assert dataset.read_image(samples["7"].images[0]).getpixel((0, 0)) == (9, 9, 9)


def test_json_lines_are_read_and_blank_lines_skipped(place):
    file = write(place, [RECORD, {**RECORD, "id": "b"}], "talks.jsonl")
    file.write_text(file.read_text().replace("\n", "\n\n"))
    assert run(place, file).details["samples"] == 2


def test_the_same_input_gives_the_same_bytes(place):
    file = write(place, [RECORD])
    one = run(place, file)
    (place / "out").rename(place / "first")
    assert run(place, file).digest == one.digest


def with_(**changes):
    return [{key: value for key, value in {**RECORD, **changes}.items() if value is not ...}]


RECORDS = {
    "not an object": (["text"], 'record 1: this is not a JSON object; a list of {"id", "image", "conversations"} is needed.'),
    "no conversations": (with_(conversations=...), "record 1 (id 'a'): it has no conversations; add or remove it."),
    "conversations not a list": (with_(conversations="Hi"), "record 1 (id 'a'): its conversations are not a list of turns; correct it."),
    "empty conversations": (with_(conversations=[]), "record 1 (id 'a'): its conversations are not a list of turns; correct it."),
    "turn without text": (with_(conversations=[{"from": "human"}]), "record 1 (id 'a'): turn 1 is not {\"from\", \"value\"} with text; correct it."),
    "unknown speaker": (with_(conversations=[{"from": "user", "value": "x"}]), "record 1 (id 'a'): turn 1 is from 'user'; use human or gpt."),
    "two questions": (with_(conversations=[GOOD[0], GOOD[0]]), "record 1 (id 'a'): the speakers are human, human, but human and gpt must alternate, human first and gpt last; correct or remove it."),
    "gpt begins": (with_(conversations=GOOD[::-1]), "record 1 (id 'a'): the speakers are gpt, human, but human and gpt must alternate, human first and gpt last; correct or remove it."),
    "no last answer": (with_(conversations=[*GOOD, GOOD[0]]), "record 1 (id 'a'): the speakers are human, gpt, human, but human and gpt must alternate, human first and gpt last; correct or remove it."),
    "empty answer": (with_(conversations=talk("<image>What?", " \n")), "record 1 (id 'a'): the answer in turn 2 is empty; fill it."),
    "empty question": (with_(conversations=talk("", "x")), "record 1 (id 'a'): the question in turn 1 is empty; fill it."),
    "two placeholders for one image": (with_(conversations=talk("<image><image>What?", "x")), "record 1 (id 'a'): its questions hold <image> 2 times, but it names 1 images; write it once for each, and the word itself in another way."),
    "placeholder without image": (with_(image=...), "record 1 (id 'a'): it holds <image> on a line of its own, but names no image; name it, or say with \"image\": [] that there is none and the word is meant."),
    "image not a path": (with_(image={"bytes": "x"}), "record 1 (id 'a'): its image is {'bytes': 'x'}; give a path or a list of paths."),
    "missing image": (with_(image="gone.png"), "record 1 (id 'a'), image 'gone.png': there is no such file in {images}; add it."),
    "folder for an image": (with_(image="sub"), "record 1 (id 'a'), image 'sub': it is not a plain file; give a picture."),
    "truncated image": (with_(image="cut.png"), "record 1 (id 'a'), image 'cut.png': the picture is truncated or damaged and cannot be decoded; fetch or write it again."),
    "text for an image": (with_(image="text.png"), "record 1 (id 'a'), image 'text.png': the file is not a picture; give it as PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO or PPM."),
    "empty image": (with_(image="empty.png"), "record 1 (id 'a'), image 'empty.png': the file is empty; give it as PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO or PPM."),
    "huge image": (with_(image="huge.png"), "record 1 (id 'a'), image 'huge.png': it has 30000 x 30000 pixels, more than 64000000 in all; make it smaller."),
    "image outside by ..": (with_(image="../secret.png"), "record 1 (id 'a'), image '../secret.png': its path leads outside with '..'; keep it below {images}."),
    "image outside by a link": (with_(image="link.png"), "record 1 (id 'a'), image 'link.png': a symbolic link leads outside {images}; copy the file there."),
    "absolute image path": (with_(image="/etc/hostname"), "record 1 (id 'a'), image '/etc/hostname': its path is absolute; give it relative to {images}."),
    "image address": (with_(image="https://x.org/a.png"), "record 1 (id 'a'), image 'https://x.org/a.png': it is an address; download it and give its path."),
    "endless image name": (with_(image="x" * 300), f"record 1 (id 'a'), image '{'x' * 99}...{'x' * 11}': it cannot be read (File name too long); check its path."),
    "double id": ([RECORD, RECORD], "record 2: its id 'a' was used before; give every record its own, or let --number-ids do it."),
    "id not a word": (with_(id=[1]), "record 1: its id is [1]; give it a text or a number."),
    "unknown split": (with_(split="dev"), "record 1 (id 'a'): its split is 'dev'; use one of train, val, test."),
    "answers not a list": (with_(answers="x"), "record 1 (id 'a'): its answers are 'x'; give a list of texts."),
}  # fmt: skip


@pytest.mark.parametrize("case", RECORDS)
def test_a_bad_record_is_refused_in_one_sentence_and_nothing_is_left(place, case):
    records, expected = RECORDS[case]
    file = write(place, records)
    with pytest.raises(UserError) as caught:
        run(place, file)
    total = len(records)
    remedy = "\n1 of 2 records (50.0%) cannot be used: correct it, or put it aside with --quarantine 0.5."
    told = f"{file}, {expected.replace('{images}', str(place / 'images'))}"
    assert str(caught.value) == told + (remedy if total == 2 else "")
    assert left_behind(place) == []


@pytest.mark.parametrize("case", RECORDS)
def test_a_bad_record_goes_to_the_quarantine_if_that_is_allowed(place, case):
    records, expected = RECORDS[case]
    others = [{**RECORD, "id": f"good {number}"} for number in range(2)]
    file = write(place, [*records, *others])
    manifest = run(place, file, quarantine=0.5)
    (row,) = pq.read_table(place / "out/quarantine.parquet").to_pylist()
    assert row["detail"] == f"{file}, {expected.replace('{images}', str(place / 'images'))}"
    assert manifest.details["quarantined"] == 1
    assert manifest.details["samples"] == len(records) + 1


TALK = (
    '{"id": 1, "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}'
)
FILES = {
    "cut off at once": ("[", "talks.json", "{file} is cut off in record 1: the list has no end (the file ends at line 1, column 2); fetch or export it again."),
    "cut off in a record": ("[{", "talks.json", "{file} is cut off in record 1: the list has no end (the file ends at line 1, column 3); fetch or export it again."),
    "cut off in a text": (f'[{TALK},\n{TALK[:-9]}', "talks.json", "{file} is cut off in record 2: the list has no end (the file ends at line 2, column 84); fetch or export it again."),
    "cut off after a record": (f"[{TALK}\n", "talks.json", "{file} is cut off after record 1: the list has no end (the file ends at line 2, column 1); fetch or export it again."),
    "cut off after a comma": (f"[{TALK},\n", "talks.json", "{file} is cut off in record 2: the list has no end (the file ends at line 2, column 1); fetch or export it again."),
    "a word in a list": (f"[{TALK},\n oops,\n{TALK}]", "talks.json", "{file}, in record 2: this is not JSON: Expecting value at line 2, column 2; correct or export it again. As JSON lines, one record a line, the broken one alone could be put aside with --quarantine."),
    "a line break in a key": (f"[{TALK.replace('a', chr(10), 1)}]", "talks.json", "{file}, in record 1: this is not JSON: Invalid control character at line 1, column 20; correct or export it again. As JSON lines, one record a line, the broken one alone could be put aside with --quarantine."),
    "no comma": (f"[{TALK}\n{TALK}]", "talks.json", "{file}, after record 1: this is not JSON: Expecting ',' delimiter at line 2, column 1; correct or export it again. As JSON lines, one record a line, the broken one alone could be put aside with --quarantine."),
    "two lists": (f"[{TALK}]\n[]", "talks.json", "{file}, after record 1: this is not JSON: Extra data at line 2, column 1; correct or export it again. As JSON lines, one record a line, the broken one alone could be put aside with --quarantine."),
    "a bad record and a cut": ('[{"id": 1}, {', "talks.json", "{file} is cut off in record 2: the list has no end (the file ends at line 1, column 14); fetch or export it again.\nBefore that, records that cannot be used either:\n{file}, record 1 (id '1'): it has no conversations; add or remove it."),
    "not a list": ('{"a": 1}', "talks.json", '{file} holds no JSON list; a list of {"id", "image", "conversations"} is needed, or one such object a line.'),
    "bad line": ('{"id": 1, "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n{', "talks.jsonl", "{file}, line 2: this is not JSON: Expecting property name enclosed in double quotes at line 1, column 2; correct or export it again.\n1 of 2 records (50.0%) cannot be used: correct it, or put it aside with --quarantine 0.5."),
    "empty list": ("[]", "talks.json", "{file} holds no records; export it again."),
    "empty file": ("", "talks.json", '{file} is empty; a list of {"id", "image", "conversations"} is needed.'),
    "a file of blanks": (" \n\n", "talks.jsonl", '{file} is empty; a list of {"id", "image", "conversations"} is needed.'),
    "endless nesting": ("[" * 100_000, "talks.json", '{file}, in record 1 (from line 1, column 2): this is nested deeper than any conversation; a list of {"id", "image", "conversations"} is needed. As JSON lines, one record a line, the broken one alone could be put aside with --quarantine.'),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_refused(place, case):
    text, name, expected = FILES[case]
    file = place / name
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        run(place, file)
    assert str(caught.value) == expected.replace("{file}", str(file))
    assert left_behind(place) == []


@pytest.mark.parametrize("text", [f"[{TALK}]", TALK, TALK.replace("a", "\u4e2d\u6587")])
@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
def test_wide_text_without_a_mark_is_named(place, encoding, text):
    file = place / "talks.json"
    file.write_bytes(text.encode(encoding))
    with pytest.raises(UserError) as caught:
        run(place, file)
    assert str(caught.value) == (
        f"{file} is {encoding} text without a mark that says so; run 'iconv -f {encoding} -t UTF-8' "
        'on it. Here a list of {"id", "image", "conversations"} is needed.'
    )
    assert left_behind(place) == []


def test_a_file_that_is_not_text_or_not_there_is_refused(place):
    (place / "talks.json").write_bytes(b"\xff\xfe\x00")
    for name, expected in (
        ("talks.json", '{file} is UTF-16 text; save it as UTF-8. Here a list of {"id", "image", "conversations"} is needed.'),
        ("gone.json", "Cannot read {file}: No such file or directory; check the path."),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            run(place, place / name)
        assert str(caught.value) == expected.replace("{file}", str(place / name))
        assert left_behind(place) == []


ARGUMENTS = {
    "no licence": ({"licence": " "}, "The licence is empty: give the SPDX name of the data's with --licence."),
    "impossible share": ({"quarantine": 1.5}, "--quarantine is 1.5; give a share from 0 to 1."),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_bad_argument_is_refused(place, case):
    changes, expected = ARGUMENTS[case]
    with pytest.raises(UserError) as caught:
        run(place, write(place, [RECORD]), **changes)
    assert str(caught.value) == expected


def test_a_missing_folder_of_images_is_refused(place):
    with pytest.raises(UserError) as caught:
        import_llava(write(place, [RECORD]), place / "no", place / "out", licence="CC0-1.0")
    assert str(caught.value) == f"There is no folder of images at {place}/no; check --images."


def test_an_existing_result_is_not_overwritten(place):
    (place / "out").mkdir()
    (place / "out/mine").write_text("mine")
    with pytest.raises(UserError) as caught:
        run(place, write(place, [RECORD]))
    assert str(caught.value) == (
        f"{place}/out exists already: remove it or give another folder with --out."
    )


def test_too_many_bad_records_are_refused_with_the_first(place):
    file = write(place, [RECORD, *with_(id="b", image="gone.png")])
    with pytest.raises(UserError) as caught:
        run(place, file, quarantine=0.4)
    assert str(caught.value) == (
        f"{file}, record 2 (id 'b'), image 'gone.png': there is no such file in {place}/images; "
        "add it.\n1 of 2 records (50.0%) cannot be used, more than --quarantine 0.4 allows: "
        "correct it, or put it aside with --quarantine 0.5."
    )
    assert left_behind(place) == []


def test_records_that_are_all_bad_are_refused_whatever_is_allowed(place):
    file = write(place, with_(image="gone.png"))
    with pytest.raises(UserError) as caught:
        run(place, file, quarantine=1.0)
    assert str(caught.value) == (
        f"{file}, record 1 (id 'a'), image 'gone.png': there is no such file in {place}/images; "
        "add it."
    )


def test_an_unwritable_place_is_refused(place):
    (place / "file").write_text("in the way")
    file = write(place, [RECORD])
    with pytest.raises(UserError) as caught:
        import_llava(file, place / "images", place / "file/out", licence="CC0-1.0")
    assert str(caught.value) == (
        f"Cannot write to {place}/file/out: {place}/file is not a folder; give another folder with "
        "--out."
    )


def test_a_full_disk_is_told_and_nothing_is_left(place, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(importing.DatasetWriter, "add_image", full)
    with pytest.raises(UserError) as caught:
        run(place, write(place, [RECORD]))
    assert str(caught.value) == (
        f"There is no room to write {place}/out (No space left on device): "
        "free some space or give another folder with --out."
    )
    assert left_behind(place) == []


def test_a_hint_names_the_files_that_lie_there_now(tmp_path):
    place, texts = PurePosixPath("Cat.png"), []
    for second, name in enumerate(("dog.png", "cat.png")):
        (tmp_path / name).touch()
        os.utime(tmp_path, (second, second))  # the clock's grain may be coarser than the test
        texts.append(importing._missing(tmp_path, place))
    there = f"there is no such file in {tmp_path}"
    assert texts == [
        f"{there}; add it.",
        f"{there}, but there is 'cat.png', other capitals or spaces; write both alike.",
    ]
