"""An evaluation whose dataset's shards stay in the bucket: the same answers, from a part of it."""

import hashlib
import io
import json
import os

import numpy as np
import pytest
from model_kit import WORDS
from PIL import Image
from s3_kit import fake_s3, name_bucket
from track_kit import write_model

from manyeyes.artifact.files import QUARANTINE_FILE
from manyeyes.artifact.manifest import Header, read_manifest, write_manifest
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.images import BadPictureError
from manyeyes.data.dataset.quarantine import write_quarantine
from manyeyes.data.dataset.sample import Sample, Turn
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.errors import UserError
from manyeyes.pipeline import runner
from manyeyes.runtime.retry import RetryPolicy
from manyeyes.store import bucket, object_key, open_store, ranges
from manyeyes.store.pointer import write_pointer

PLACE = "s3://team/store"
NUM = 30
ASKED = range(0, NUM, 3)
"""Every third sample is a question of the split; the rest is for training."""
BATCH = 4


@pytest.fixture(scope="module")
def server():
    with fake_s3() as running:
        yield running


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder / "sft")
    return folder / "sft"


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """A bucket named by the environment; every request for one picture, or for neighbours."""
    name_bucket(server, monkeypatch, PLACE)
    for name in ("MANYEYES_CACHE", "MANYEYES_CACHE_LIMIT", "MANYEYES_RUN"):
        monkeypatch.delenv(name, raising=False)
    quick = RetryPolicy(seconds=5.0, first=0.001, longest=0.01)
    monkeypatch.setattr(bucket, "PATIENCE", quick)
    monkeypatch.setattr(ranges, "GAP_BYTES", 0)
    return server


def encoded(number, name):
    noise = np.random.default_rng(number).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, name)
    return buffer.getvalue()


def make_dataset(folder):
    """Write thirty pictures into a few shards; each split's lie between the other's."""
    with DatasetWriter(folder, shard_size=60_000) as writer:
        writer.add_source("made here", "CC0-1.0", "noise")
        for number in range(NUM):
            ref = writer.add_image(encoded(number, ("JPEG", "PNG")[number % 2]), f"p{number:02}")
            split = "test" if number in ASKED else "train"
            turns = (Turn("human", "<image>\nwhat is this"), Turn("gpt", WORDS[7]))
            writer.add(
                Sample(f"s{number:02}", split, "shapes", "", turns, (ref,), (WORDS[7],),
                       "made here", "CC0-1.0", ())
            )  # fmt: skip
    return Dataset.open(folder)


def hand_on(folder, kind, stage, out, **parents):
    """Store an artifact and leave a pointer to it."""
    header = Header(
        kind=kind, stage=stage, name=stage, recipe_slice="s",
        fingerprint=hashlib.sha256(stage.encode()).hexdigest(),
        parents=parents, code="c", revision="r", libraries={}, seed=1,
    )  # fmt: skip
    manifest = write_manifest(folder, header)
    write_pointer(open_store(), open_store().put(folder, manifest), manifest, out)
    return manifest.digest


@pytest.fixture
def pointers(s3, tmp_path, checkpoint):
    """What the pods before an evaluation leave; the dataset itself, to compare with."""
    made = make_dataset(tmp_path / "made")
    dataset = hand_on(tmp_path / "made", "dataset", "prepare", tmp_path / "dataset")
    (tmp_path / "report").mkdir()
    write_quarantine(tmp_path / "report" / QUARANTINE_FILE, [])
    validation = tmp_path / "validation"
    hand_on(tmp_path / "report", "report", "validate", validation, dataset=dataset)
    manifest = read_manifest(checkpoint)
    dir_id = open_store().put(checkpoint, manifest)
    write_pointer(open_store(), dir_id, manifest, tmp_path / "checkpoint")
    s3.requests.clear()
    return made


def examine(monkeypatch, tmp_path, checkpoint, home, shards):
    """Run the stage on a pod; return its report's folder."""
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / home))
    monkeypatch.setenv("MANYEYES_SHARDS", shards)
    model = json.loads((checkpoint / "recipe.json").read_text())["model"]
    section = {
        "split": "test", "tasks": {"shapes": "exact_match"}, "max_new_tokens": 2,
        "batch_size": BATCH, "limit": 0, "examples": 2, "blind": True,
    }  # fmt: skip
    piece = json.dumps({"seed": 1, "model": model, "section": section})
    inputs = {role: tmp_path / role for role in ("dataset", "validation", "checkpoint")}
    out = tmp_path / f"{home}-out"
    runner.run_stage("eval", piece, inputs=inputs, out=out)
    return out


def shard_keys(dataset):
    listed = json.loads((dataset.path / "manifest.json").read_text())["files"]
    return {name.removeprefix("shards/"): object_key(entry["md5"])
            for name, entry in listed.items() if name.startswith("shards/")}  # fmt: skip


def forget_result(s3):
    for key in [key for key in s3.objects if "/index/" in key]:
        del s3.objects[key]


def test_the_answers_by_ranges_are_those_from_files_and_only_the_split_is_read(
    s3, pointers, checkpoint, monkeypatch, tmp_path
):
    files = examine(monkeypatch, tmp_path, checkpoint, "one", "local")
    forget_result(s3)
    s3.requests.clear()
    remote = examine(monkeypatch, tmp_path, checkpoint, "two", "remote")
    for name in ("metrics.json", "predictions.parquet"):
        assert (remote / name).read_bytes() == (files / name).read_bytes()
    keys = shard_keys(pointers)
    assert len(keys) > 2
    for key in keys.values():
        name = key.split("files/md5/")[1]
        assert (tmp_path / "one/cache/objects" / name).exists()
        assert not (tmp_path / "two/cache/objects" / name).exists()
    # Each of the split's pictures once: what the blank picture and the report need is still kept.
    assert sum(s3.count("GET", key) for key in keys.values()) == len(ASKED)
    assert os.listdir(tmp_path / "two/inputs") == []


def test_the_pictures_of_a_batch_come_with_one_request_for_each_shard(
    s3, pointers, checkpoint, monkeypatch, tmp_path
):
    monkeypatch.setattr(ranges, "GAP_BYTES", 1_000_000)
    examine(monkeypatch, tmp_path, checkpoint, "two", "remote")
    refs = [one.images[0] for one in pointers.samples("test")]
    batches = [refs[start : start + BATCH] for start in range(0, len(refs), BATCH)]
    needed = sum(len({ref.shard for ref in batch}) for batch in batches)
    assert needed < len(refs)
    assert sum(s3.count("GET", key) for key in shard_keys(pointers).values()) == needed


def test_a_picture_that_changed_in_the_bucket_ends_it_and_what_was_answered_is_kept(
    s3, pointers, checkpoint, monkeypatch, tmp_path
):
    expected = examine(monkeypatch, tmp_path, checkpoint, "one", "local")
    forget_result(s3)
    bad = pointers.samples("test")[BATCH + 1].images[0]
    key = f"team/store/{shard_keys(pointers)[bad.shard]}"
    whole = s3.objects[key]
    place = bad.offset + 9
    s3.objects[key] = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    with pytest.raises(BadPictureError) as caught:
        examine(monkeypatch, tmp_path, checkpoint, "two", "remote")
    assert str(caught.value) == (
        f"{bad.id} in shards/{bad.shard} in the content store {PLACE}: the bytes do not have the "
        "recorded sha256; unset MANYEYES_SHARDS, so that the whole shard is fetched, checked and "
        "made anew."
    )
    (journal,) = tmp_path.rglob("seeing.jsonl")
    assert len(journal.read_text().splitlines()) == BATCH
    s3.objects[key] = whole
    report = examine(monkeypatch, tmp_path, checkpoint, "two", "remote")
    for name in ("metrics.json", "predictions.parquet"):
        assert (report / name).read_bytes() == (expected / name).read_bytes()


def test_a_shard_that_goes_away_meanwhile_is_one_sentence(
    s3, pointers, checkpoint, monkeypatch, tmp_path
):
    from manyeyes.evaluation import run

    key = shard_keys(pointers)["images-00000.tar"]
    choose = run.choose_samples

    def lose(*given):
        del s3.objects[f"team/store/{key}"]
        return choose(*given)

    monkeypatch.setattr(run, "choose_samples", lose)
    with pytest.raises(UserError) as caught:
        examine(monkeypatch, tmp_path, checkpoint, "two", "remote")
    assert not isinstance(caught.value, BadPictureError)
    assert str(caught.value) == (
        "One of the shards images-00000.tar is no longer in the content store s3://team/store: run "
        "the pipeline again, which makes the dataset anew."
    )
