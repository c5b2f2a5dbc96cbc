"""The dataset format: what is written comes back, byte for byte, from inside the folder only."""

import errno
import io
import json
import pickle
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from manyeyes.data.dataset.dataset import (
    Annotation,
    Dataset,
    DatasetWriter,
    ImageRef,
    Sample,
    SceneObject,
    Turn,
    grid_words,
)
from manyeyes.data.dataset.rows import parse_turns
from manyeyes.errors import UserError


def picture(shade: int, name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, shade, shade)).save(buffer, name)
    return buffer.getvalue()


def sample(name: str, ref: ImageRef | None, split: str = "train", task: str = "scenes") -> Sample:
    return Sample(
        id=name,
        split=split,
        task=task,
        subset="colour",
        turns=(Turn("human", "<image>\nWhich colour is «it»?"), Turn("gpt", "grey")),
        images=() if ref is None else (ref,),
        answers=("grey",) * 10,
        source="drawn",
        licence="CC0-1.0",
        entities=("scene:1",),
    )


def write(directory: Path, shard_size: int = 4096) -> list[Sample]:
    samples = []
    with DatasetWriter(directory, shard_size) as writer:
        writer.add_source("drawn", "CC0-1.0", "Drawn by hand")
        for index in range(12):
            ref = writer.add_image(picture(20 * index), f"image-{index}")
            thing = SceneObject("shape", "circle", "red", (1.0, 2.5, 3.25, 4.0))
            writer.add_annotation(Annotation(ref.id, "train", "scenes", (thing,)))
            split = ("train", "val", "test")[index % 3]
            task = ("scenes", "charts")[index % 2]
            samples.append(sample(f"sample-{index}", ref, split, task))
            writer.add(samples[-1])
    return samples


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path / "data")
    return tmp_path / "data"


def test_samples_come_back_as_they_were_added(tmp_path: Path) -> None:
    written = write(tmp_path)
    assert Dataset.open(tmp_path).samples() == written


def test_pictures_come_back_from_every_shard(directory: Path) -> None:
    dataset = Dataset.open(directory)
    assert len(list((directory / "shards").iterdir())) > 1
    for index, one in enumerate(dataset.samples()):
        shade = 20 * index
        assert dataset.read_image(one.images[0]).getpixel((0, 0)) == (shade, shade, shade)
        assert (one.images[0].width, one.images[0].height) == (20, 10)


def test_samples_are_chosen_by_split_task_and_exclusion(directory: Path) -> None:
    dataset = Dataset.open(directory)
    chosen = dataset.samples("train", {"scenes"}, exclude={"sample-0"})
    assert [one.id for one in chosen] == ["sample-6"]
    assert set(dataset.images("val")) == {f"image-{index}" for index in (1, 4, 7, 10)}


def test_annotations_come_back(directory: Path) -> None:
    annotations = Dataset.open(directory).annotations("train")
    assert annotations["image-3"].objects == (
        SceneObject("shape", "circle", "red", (1.0, 2.5, 3.25, 4.0)),
    )
    assert Dataset.open(directory).annotations("test") == {}


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two")
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")]
    assert len(files) > 4
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_shards_are_tar_files_without_a_trace_of_machine_or_hour(directory: Path) -> None:
    with tarfile.open(directory / "shards" / "images-00000.tar") as tar:
        members = tar.getmembers()
        first = tar.extractfile(members[0])
        assert first is not None
        assert first.read() == picture(0)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }
    listing = subprocess.run(
        ["tar", "tf", directory / "shards" / "images-00000.tar"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (listing.returncode, listing.stdout.split()[0]) == (0, "image-0.png")


def test_rebuilding_in_place_leaves_nothing_of_the_old_build(directory: Path) -> None:
    with DatasetWriter(directory) as writer:
        writer.add(sample("only", writer.add_image(picture(1), "image")))
    assert [path.name for path in (directory / "shards").iterdir()] == ["images-00000.tar"]
    assert not (directory / "annotations.parquet").exists()


def test_a_build_that_breaks_off_is_no_dataset(directory: Path) -> None:
    writer = DatasetWriter(directory)
    writer.add_image(picture(1), "image")
    writer.__exit__(RuntimeError, RuntimeError(), None)
    with pytest.raises(UserError) as refusal:
        Dataset.open(directory)
    assert str(refusal.value) == (
        f"{directory}: this is not a finished dataset, samples.parquet is missing; "
        "make one with 'manyeyes data starter'."
    )


def test_sources_are_counted(directory: Path) -> None:
    assert json.loads((directory / "sources.json").read_text()) == {
        "drawn": {
            "licence": "CC0-1.0", "provenance": "Drawn by hand", "samples": 12, "images": 12,
        }
    }  # fmt: skip


def test_a_dataset_travels_to_other_processes_and_serves_many_threads(directory: Path) -> None:
    dataset = Dataset.open(directory)
    refs = [one.images[0] for one in dataset.samples()] * 20
    copied = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own bytes
    assert copied.samples() == dataset.samples()
    with ThreadPoolExecutor(8) as pool:
        shades = list(pool.map(lambda ref: dataset.read_image(ref).getpixel((0, 0)), refs))
    assert shades[:12] == shades[-12:]
    dataset.close()
    assert dataset.read_bytes(refs[0]) == picture(0)


def first_ref(directory: Path) -> ImageRef:
    return Dataset.open(directory).samples()[0].images[0]


def test_reading_notices_changed_bytes(directory: Path) -> None:
    ref = first_ref(directory)
    shard = directory / "shards" / ref.shard
    data = bytearray(shard.read_bytes())
    data[ref.offset + 40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError) as refusal:
        Dataset.open(directory).read_bytes(ref)
    assert str(refusal.value) == (
        f"image-0 in {shard}: the bytes do not have the recorded sha256; fetch it again."
    )


def test_reading_notices_a_short_shard(directory: Path) -> None:
    ref = first_ref(directory)
    shard = directory / "shards" / ref.shard
    shard.write_bytes(shard.read_bytes()[: ref.offset + 10])
    with pytest.raises(UserError) as refusal:
        Dataset.open(directory).read_bytes(ref)
    assert str(refusal.value) == (
        f"image-0 in {shard}: the shard ends before the picture; fetch it again."
    )


@pytest.mark.parametrize("offset", [-1, 10**9])
def test_an_offset_outside_the_shard_is_refused(directory: Path, offset: int) -> None:
    with pytest.raises(UserError, match="the shard ends before the picture"):
        Dataset.open(directory).read_bytes(replace(first_ref(directory), offset=offset))


@pytest.mark.parametrize("shard", ["../secret", "../../secret", "/etc/hostname", "a/b.tar", ".."])
def test_a_shard_outside_the_dataset_is_refused(directory: Path, shard: str) -> None:
    (directory / "secret").write_bytes(picture(0))
    with pytest.raises(UserError) as refusal:
        Dataset.open(directory).read_bytes(replace(first_ref(directory), shard=shard))
    assert str(refusal.value) == (
        f"image-0: its shard {shard!r} lies outside {directory}/shards; "
        "shards are files in that folder."
    )


def test_a_shard_that_links_outside_is_refused(directory: Path) -> None:
    ref = first_ref(directory)
    (directory / "secret").write_bytes(picture(0))
    (directory / "shards" / "link.tar").symlink_to(directory / "secret")
    with pytest.raises(UserError, match="lies outside"):
        Dataset.open(directory).read_bytes(replace(ref, shard="link.tar"))


def test_a_missing_shard_is_named(directory: Path) -> None:
    with pytest.raises(UserError) as refusal:
        Dataset.open(directory).read_bytes(replace(first_ref(directory), shard="images-9.tar"))
    assert str(refusal.value) == (
        f"{directory}/shards/images-9.tar: the shard cannot be opened "
        "(No such file or directory); fetch or make the dataset again."
    )


def test_an_index_that_is_no_parquet_is_refused(directory: Path) -> None:
    (directory / "samples.parquet").write_text("nonsense")
    with pytest.raises(UserError) as refusal:
        Dataset.open(directory).samples()
    assert str(refusal.value) == (
        f"{directory}/samples.parquet: this is not a readable parquet file; "
        "fetch or make the dataset again."
    )


@pytest.mark.parametrize(
    "conversations",
    ["", "{}x", '"text"', "[1]", "null", '[{"from": "system", "value": "x"}]',
     '[{"from": "gpt"}]', '[{"from": "gpt", "value": 3}]'],
)  # fmt: skip
def test_an_unreadable_conversation_names_its_sample(conversations: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_turns("s-1", conversations)
    assert str(refusal.value) == (
        "sample s-1: its conversation is not a JSON list of turns with 'from' (human or gpt) and "
        "'value'; correct or remove the row."
    )


@pytest.mark.parametrize("name", ["a/b", "../a", ".hidden", "x" * 91])
def test_a_picture_id_must_be_able_to_name_a_tar_member(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as refusal, DatasetWriter(tmp_path) as writer:
        writer.add_image(picture(0), name)
    assert str(refusal.value) == (
        f"{name}: a picture id is at most 90 bytes, without '/' and without a leading '.'; "
        "rename it."
    )


def test_an_id_is_used_once(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path)
    writer.add_image(picture(0), "a")
    with pytest.raises(UserError) as refusal:
        writer.add_image(picture(1), "a")
    writer.close()
    assert str(refusal.value) == ("a: two pictures or samples have this id; give each its own.")


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as refusal:
        DatasetWriter(tmp_path / "file" / "data")
    assert str(refusal.value) == (
        f"{tmp_path}/file/data: the dataset cannot be written here (Not a directory); "
        "choose another folder."
    )


def test_a_full_disk_is_left_to_the_caller_and_leaves_no_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path)
    assert not (tmp_path / "samples.parquet").exists()


GRIDS = {
    "a shape covers the cells it fills": (
        [SceneObject("shape", "ring", "red", (10, 16, 42, 32))],
        {(1, 1): "red_ring", (1, 2): "red_ring"},
    ),
    "a small shape claims its middle cell": (
        [SceneObject("shape", "star", "blue", (44, 44, 52, 52))],
        {(3, 3): "blue_star"},
    ),
    "a word covers the cells of its row": (
        [SceneObject("word", "paris", "", (2, 19, 40, 34))],
        {(1, 0): "paris", (1, 1): "paris", (1, 2): "paris"},
    ),
    "a letter over the edge is not a word": (
        [SceneObject("word", "tea", "", (2, 19, 35, 30))],
        {(1, 0): "tea", (1, 1): "tea"},
    ),
    "digits and printed numbers are told apart": (
        [
            SceneObject("digit", "4", "", (1, 1, 20, 15)),
            SceneObject("number", "37", "", (99, 2, 110, 12)),
        ],
        {(0, 0): "4", (0, 6): "n37"},
    ),
    "print on a bar wins": (
        [
            SceneObject("number", "9", "", (2, 2, 14, 12)),
            SceneObject("bar", "bar", "pink", (0, 0, 16, 48)),
        ],
        {(0, 0): "n9", (1, 0): "pink_bar", (2, 0): "pink_bar"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GRIDS)
def test_grid_words(case: str) -> None:
    objects, expected = GRIDS[case]
    words = grid_words(Annotation("i", "train", "scenes", tuple(objects)), 8, 128)
    assert [len(row) for row in words] == [8] * 8
    found = {
        (row, column): word
        for row, line in enumerate(words)
        for column, word in enumerate(line)
        if word != "."
    }
    assert found == expected
