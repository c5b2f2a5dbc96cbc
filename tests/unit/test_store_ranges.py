"""Pictures of a dataset whose shards stay in the bucket: the same as from files, by few requests."""

import io
import json
import threading
from functools import partial
from multiprocessing import forkserver

import numpy as np
import pytest
import torch
from decoding_kit import canvas
from PIL import Image
from s3_kit import fake_s3, name_bucket
from training_kit import make_dataset, make_section, run, sample

from manyeyes.artifact.manifest import Header, write_manifest
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.images import BadPictureError
from manyeyes.data.dataset.sample import Turn
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.loading.batches import BatchPlan, Prepared
from manyeyes.data.loading.canvases import PixelCache, make_canvases
from manyeyes.data.loading.loader import BatchLoader
from manyeyes.data.loading.tokens import IMAGE_TOKEN, Encoded, Encodings
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.pipeline import runner, stages
from manyeyes.runtime.retry import RetryPolicy
from manyeyes.store import DamagedObjectError, bucket, object_key, open_store, ranges
from manyeyes.store.bucket import Address, Bucket
from manyeyes.store.delivery import left_behind, whole
from manyeyes.store.layout import Member
from manyeyes.store.pointer import write_pointer
from manyeyes.store.ranges import RemoteFile, RemoteReader, Span, join
from manyeyes.store.retry import StoreRequestError

PLACE = "s3://team/store"
QUICK = RetryPolicy(seconds=5.0, first=0.001, longest=0.01)
IMPATIENT = RetryPolicy(seconds=0.0, first=0.001, longest=0.001)
NUM = 12
PER_SHARD = 5


@pytest.fixture(scope="module")
def server():
    with fake_s3() as running:
        yield running


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """A bucket named by the environment, and a pod with an empty home."""
    name_bucket(server, monkeypatch, PLACE)
    for name in ("MANYEYES_CACHE", "MANYEYES_CACHE_LIMIT", "MANYEYES_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MANYEYES_SHARDS", "remote")
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "pod"))
    monkeypatch.setattr(bucket, "PATIENCE", QUICK)
    return server


def png(shade):
    buffer = io.BytesIO()
    noise = np.random.default_rng(shade).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def stored(folder, kind="dataset", stage="prepare", parents=()):
    """Put a folder into the bucket; return its directory's id and its manifest."""
    header = Header(
        kind=kind, stage=stage, name=stage, recipe_slice="s", fingerprint="f" * 64,
        parents=dict(parents), code="c", revision="r", libraries={}, seed=1,
    )  # fmt: skip
    manifest = write_manifest(folder, header)
    return open_store().put(folder, manifest), manifest


@pytest.fixture
def made(s3, tmp_path):
    """Store a dataset of three shards; return its folder and its directory's id."""
    turns = (Turn("human", "<image>\nsay"), Turn("gpt", "hello"))
    with DatasetWriter(tmp_path / "made", shard_size=PER_SHARD * 1600) as writer:
        for i in range(NUM):
            ref = writer.add_image(png(i), f"picture-{i}")
            writer.add(sample(f"s{i}", "t", turns, (ref,)))
    return tmp_path / "made", stored(tmp_path / "made")[0]


@pytest.fixture
def pair(s3, made, tmp_path):
    """The dataset from files, and from the bucket."""
    folder, dir_id = made
    open_store().checkout(dir_id, tmp_path / "there", leave="shards/")
    s3.requests.clear()
    s3.sent = 0
    return Dataset.open(folder), Dataset.open(tmp_path / "there")


def refs_of(dataset):
    return [one.images[0] for one in dataset.samples()]


def shard_key(folder, name):
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    return object_key(listed[f"shards/{name}"]["md5"])


def test_only_the_index_is_fetched_before_the_first_picture(s3, made, tmp_path):
    folder, dir_id = made
    s3.sent = 0
    s3.requests.clear()
    open_store().checkout(dir_id, tmp_path / "there", leave="shards/")
    samples = Dataset.open(tmp_path / "there").samples()
    assert samples == Dataset.open(folder).samples()
    shards = sorted(path.name for path in (folder / "shards").iterdir())
    assert len(shards) == 3
    assert [s3.count("GET", shard_key(folder, name)) for name in shards] == [0, 0, 0]
    listed = len(s3.objects[f"team/store/{object_key(dir_id)}"])
    files = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    assert s3.sent == listed + files
    assert not (tmp_path / "there/shards").exists()


def test_pictures_are_those_of_the_files_in_any_order(pair):
    local, remote = pair
    refs = refs_of(local)[::-1]
    assert [remote.read_bytes(ref) for ref in refs] == [local.read_bytes(ref) for ref in refs]
    ours, theirs = (make_canvases(dataset, canvas, refs) for dataset in (local, remote))
    assert torch.equal(ours.pixels, theirs.pixels)
    assert ours.problems == theirs.problems == ("",) * NUM


def test_a_micro_batch_costs_one_request_for_each_shard_it_touches(s3, pair):
    local, remote = pair
    make_canvases(remote, canvas, refs_of(local)[:7])
    assert (s3.count("GET"), s3.count("HEAD")) == (2, 0)
    make_canvases(remote, canvas, refs_of(local)[:7])
    assert s3.count("GET") == 2


def test_a_micro_batch_larger_than_what_is_kept_is_read_in_portions(s3, pair, monkeypatch):
    local, remote = pair
    refs = refs_of(local)
    monkeypatch.setattr(
        "manyeyes.data.dataset.shards.AHEAD_BYTES", sum(ref.size for ref in refs[:3])
    )
    made = make_canvases(remote, canvas, refs)
    assert torch.equal(made.pixels, make_canvases(local, canvas, refs).pixels)
    assert len(refs) // 3 <= s3.count("GET") < len(refs)


def test_pictures_far_from_each_other_are_asked_for_one_by_one(s3, pair, monkeypatch):
    local, remote = pair
    monkeypatch.setattr(ranges, "GAP_BYTES", 1000)
    refs = refs_of(local)
    make_canvases(remote, canvas, [refs[0], refs[1], refs[3]])
    assert s3.count("GET") == 2
    assert s3.sent == refs[1].offset + refs[1].size - refs[0].offset + refs[3].size


SPANS = [
    ("neighbours", [("a", 0, 5), ("a", 5, 5)], [2]),
    ("a gap that is cheap", [("a", 0, 5), ("a", 15, 5)], [2]),
    ("a gap that is not", [("a", 0, 5), ("a", 16, 5)], [1, 1]),
    ("given from behind", [("a", 15, 5), ("a", 0, 5)], [2]),
    ("twice the same", [("a", 0, 5), ("a", 0, 5)], [1]),
    ("one in another", [("a", 0, 20), ("a", 2, 3), ("a", 25, 5)], [3]),
    ("two files", [("a", 0, 5), ("b", 5, 5)], [1, 1]),
    ("no more than one request takes", [("a", i * 10, 10) for i in range(7)], [4, 3]),
    ("one beyond it", [("a", 0, 100), ("a", 100, 5)], [1, 1]),
    ("none", [], []),
]


@pytest.mark.parametrize(
    ("spans", "expected"), [case[1:] for case in SPANS], ids=[case[0] for case in SPANS]
)
def test_pieces_are_joined_where_the_gap_is_small(spans, expected, monkeypatch):
    monkeypatch.setattr(ranges, "GAP_BYTES", 10)
    monkeypatch.setattr(ranges, "RUN_BYTES", 40)
    runs = join(Span(*span) for span in spans)
    assert [len(run.spans) for run in runs] == expected
    assert {span for run in runs for span in run.spans} == {Span(*span) for span in spans}


@pytest.mark.parametrize("limit", [0, 100, 250, 10_000])
def test_what_is_kept_stays_below_its_limit_and_what_is_read_is_right(s3, limit):
    data = np.random.default_rng(0).bytes(1000)
    s3.objects[f"team/store/{object_key('ab' * 16)}"] = data
    reader = RemoteReader(
        Bucket(Address.parse(PLACE)), {"f": RemoteFile(md5="ab" * 16, size=1000)}, limit
    )
    spans = [Span("f", start, 100) for start in range(0, 1000, 100)]
    for chosen in (spans, spans[::-1]):
        reader.ahead(chosen)
        assert [reader.read(s) for s in chosen] == [data[s.start : s.stop] for s in chosen]
        assert reader._bytes == sum(map(len, reader._kept.values())) <= limit
    assert [reader.read(Span("f", *place)) for place in ((990, 20), (-1, 5), (5, 0))] == [b""] * 3


@pytest.mark.parametrize("kind", ["500", "503", "refuse", "drop", "wrong"])
def test_a_server_that_recovers_costs_nothing(s3, pair, kind):
    local, remote = pair
    refs = refs_of(local)[:PER_SHARD]
    s3.fail("GET", "/files/", kind, times=2)
    made = make_canvases(remote, canvas, refs)
    assert s3.faults[0].times == 0
    assert made.problems == ("",) * PER_SHARD
    assert torch.equal(made.pixels, make_canvases(local, canvas, refs).pixels)


def test_a_slow_server_is_waited_for(s3, pair):
    local, remote = pair
    s3.fail("GET", "/files/", "slow", times=1)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(make_canvases(remote, canvas, refs_of(local)))
    )
    thread.start()
    assert s3.arrived.wait(600)
    assert found == []
    s3.released.set()
    thread.join()
    assert torch.equal(found[0].pixels, make_canvases(local, canvas, refs_of(local)).pixels)


def change(data, ref):
    return data[: ref.offset + 9] + bytes([data[ref.offset + 9] ^ 1]) + data[ref.offset + 10 :]


CHANGED = [
    ("changed", change, "the bytes do not have the recorded sha256"),
    ("cut in it", lambda data, ref: data[: ref.offset + 9], "the shard ends before the picture"),
    ("cut before", lambda data, ref: data[: ref.offset], "the shard ends before the picture"),
]


@pytest.mark.parametrize(
    ("edit", "problem"), [case[1:] for case in CHANGED], ids=[case[0] for case in CHANGED]
)
def test_a_picture_that_changed_in_the_bucket_is_that_pictures_affair(s3, pair, edit, problem):
    local, remote = pair
    refs = refs_of(local)
    bad = refs[PER_SHARD - 1]
    key = f"team/store/{shard_key(local.path, bad.shard)}"
    s3.objects[key] = edit(s3.objects[key], bad)
    text = (
        f"{bad.id} in shards/{bad.shard} in the content store {PLACE}: {problem}; unset "
        "MANYEYES_SHARDS, so that the whole shard is fetched, checked and made anew."
    )
    with pytest.raises(BadPictureError) as caught:
        remote.read_bytes(bad)
    assert str(caught.value) == text
    made = make_canvases(remote, canvas, refs)
    assert made.problems == tuple(text if ref is bad else "" for ref in refs)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_bucket_that_stays_away_is_one_sentence_and_no_pictures_affair(
    s3, pair, monkeypatch, ahead
):
    local, remote = pair
    monkeypatch.setattr(bucket, "PATIENCE", IMPATIENT)
    s3.fail("GET", "/files/", "503", times=1000)
    ref = refs_of(local)[0]
    with pytest.raises(ManyeyesError) as caught:
        make_canvases(remote, canvas, [ref]) if ahead else remote.read_bytes(ref)
    assert not isinstance(caught.value, BadPictureError)
    assert str(caught.value) == (
        f"The content store {PLACE} did not answer for 0 s (An error occurred (SlowDown) when "
        "calling the GetObject operation (reached max retries: 0): SlowDown): check "
        "AWS_ENDPOINT_URL and that it runs, then run the same command again; what was finished is "
        "kept."
    )


@pytest.mark.parametrize(
    ("ahead", "what"),
    [(False, "The shard images-00000.tar"), (True, "One of the shards images-00000.tar")],
    ids=["one", "some"],
)
def test_a_shard_that_is_gone_is_an_error_of_the_whole(s3, pair, ahead, what):
    local, remote = pair
    ref = refs_of(local)[0]
    del s3.objects[f"team/store/{shard_key(local.path, ref.shard)}"]
    with pytest.raises(UserError) as caught:
        make_canvases(remote, canvas, [ref]) if ahead else remote.read_bytes(ref)
    assert not isinstance(caught.value, BadPictureError)
    assert str(caught.value) == (
        f"{what} is no longer in the content store {PLACE}: run the pipeline again, which makes "
        "the dataset anew."
    )


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (None, "is not in the content store s3://team/store; run the same command again to make "
               "it, or fetch it with 'dvc pull'."),
        (b"short", "in the content store s3://team/store is not the {size} bytes of "
                   "shards/images-00001.tar; it was set aside, run the same command again to make "
                   "it anew."),
    ],
    ids=["gone", "short"],
)  # fmt: skip
def test_a_shard_that_is_not_whole_is_told_before_training(s3, made, tmp_path, edit, error):
    folder, dir_id = made
    key = shard_key(folder, "images-00001.tar")
    del s3.objects[f"team/store/{key}"]
    if edit is not None:
        s3.objects[f"team/store/{key}"] = edit
    with pytest.raises(DamagedObjectError) as caught:
        open_store().checkout(dir_id, tmp_path / "there", leave="shards/")
    size = (folder / "shards/images-00001.tar").stat().st_size
    assert str(caught.value) == f"{key} {error.format(size=size)}"
    assert not (tmp_path / "there").exists()


def test_a_server_that_knows_no_ranges_is_told(s3, pair):
    local, remote = pair
    s3.knows_ranges = False
    with pytest.raises(StoreRequestError) as caught:
        remote.read_bytes(refs_of(local)[0])
    assert str(caught.value) == (
        f"The content store {PLACE} gives objects only whole: unset MANYEYES_SHARDS."
    )


def test_a_shard_that_is_none_of_the_datasets_is_refused(pair):
    local, remote = pair
    ref = refs_of(local)[0]
    strange = type(ref)(**{**vars(ref), "shard": "../samples.parquet"})
    with pytest.raises(UserError) as caught:
        remote.read_bytes(strange)
    assert str(caught.value) == (
        f"picture-0: its shard '../samples.parquet' is no file of the dataset in the content store "
        f"{PLACE}; make the dataset again."
    )


def test_a_stored_artifact_cannot_say_where_its_files_are(s3, made):
    store = open_store()
    manifest = next(m for m in store._members(made[1]) if m.relpath == "manifest.json")
    forged = store._put_tree([manifest, Member(md5=manifest.md5, relpath="remote.json")])
    with pytest.raises(DamagedObjectError, match=r"lists the file 'remote\.json'"):
        store.manifest(forged)


def test_what_says_where_the_shards_are_must_be_readable(pair):
    _, remote = pair
    ref = refs_of(remote)[0]
    (remote.path / "remote.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        Dataset.open(remote.path).read_bytes(ref)
    assert str(caught.value) == (
        f"{remote.path / 'remote.json'} does not say which files stayed in the content store; "
        "run the stage again."
    )


def loader(dataset, **options):
    """Return a loader of three steps over the twelve samples."""
    ids, labels = np.array([1, IMAGE_TOKEN, 7]), np.array([-100, -100, 7])
    encoded = Encodings.of([Encoded(ids, labels, 3, 1, truncated=False)] * NUM)
    plan = BatchPlan(0, (tuple(range(NUM)),), (1.0,), ((1, 1, 2),) * NUM, 2, 2)
    prepared = Prepared(dataset.samples(), encoded, 0, ())
    return BatchLoader(prepared, plan, PixelCache(dataset, canvas), 0, 3, **options)


def drawn(dataset, **options):
    with loader(dataset, **options) as batches:
        return [(b.sample_ids, b.pixels.tolist()) for step in batches for b in step]


@pytest.mark.xdist_group("decoding")
def test_workers_read_by_ranges_and_give_the_same_batches(pair):
    local, remote = pair
    expected = drawn(local)
    refs_of(remote)
    remote.read_bytes(refs_of(remote)[0])  # a client and what it keeps must not cross
    forkserver._forkserver._stop()  # the one of other tests has their environment
    try:
        assert drawn(remote, workers=2) == drawn(remote) == expected
    finally:
        forkserver._forkserver._stop()


def test_a_loader_ends_though_its_bucket_is_away(s3, pair, monkeypatch):
    monkeypatch.setattr(bucket, "PATIENCE", RetryPolicy(10_000.0, 10_000.0, 10_000.0))
    waits = threading.Event()
    monkeypatch.setattr("manyeyes.store.retry.logger.warning", lambda *_: waits.set())
    s3.fail("GET", "/files/", "503", times=1000)
    with loader(pair[1]):
        assert waits.wait(600)


SLICE = '{"seed":1,"prealign":{}}'


def train_stage(monkeypatch, tmp_path, home, shards):
    """Run a training stage on a pod; return its losses."""
    curves = []

    def call(stage, recipe_slice, context):
        out, dataset = context.out, Dataset.open(context.inputs["dataset"])
        section = make_section(steps=2, max_quarantined=0.1)
        run(tmp_path, dataset=dataset, section=section, out=out, progress=context.progress)
        lines = (out / "measurements/metrics.jsonl").read_text().splitlines()
        curves.extend(json.loads(line)["loss"] for line in lines)
        return {}

    monkeypatch.setattr(stages, "ready", partial(partial, call))
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / home))
    monkeypatch.setenv("MANYEYES_SHARDS", shards)
    inputs = {role: tmp_path / role for role in ("dataset", "validation")}
    runner.run_stage("prealign", SLICE, inputs=inputs, out=tmp_path / f"{home}-out", expert="clip")
    return curves


@pytest.fixture
def pointers(s3, tmp_path):
    """What the pods before a training leave: pointers to a dataset and its report."""
    make_dataset(tmp_path / "data")
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report").write_bytes(b"fine")
    made_of = {}
    for role, folder, kind, stage in (
        ("dataset", "data", "dataset", "prepare"),
        ("validation", "report", "report", "validate"),
    ):
        dir_id, manifest = stored(tmp_path / folder, kind, stage, made_of)
        made_of = {role: manifest.digest}
        write_pointer(open_store(), dir_id, manifest, tmp_path / role)
    return shard_key(tmp_path / "data", "images-00000.tar")


def forget_result(s3):
    for key in [key for key in s3.objects if "/index/" in key]:
        del s3.objects[key]


def test_training_by_ranges_has_the_losses_of_training_from_files(
    s3, pointers, monkeypatch, tmp_path
):
    local = train_stage(monkeypatch, tmp_path, "one", "local")
    assert (tmp_path / "one/cache/objects").exists()
    fetched = s3.sent
    forget_result(s3)
    s3.sent = 0
    monkeypatch.setattr(ranges, "GAP_BYTES", 0)
    remote = train_stage(monkeypatch, tmp_path, "two", "remote")
    assert remote == local
    assert len(local) == 2
    assert s3.sent < fetched
    name = pointers.split("files/md5/")[1]
    assert (tmp_path / "one/cache/objects" / name).exists()
    assert not (tmp_path / "two/cache/objects" / name).exists()
    assert list((tmp_path / "two/inputs").iterdir()) == []


def test_a_picture_that_changes_in_the_bucket_is_put_into_quarantine(
    s3, pointers, monkeypatch, tmp_path
):
    key = f"team/store/{pointers}"
    samples = [one for one in Dataset.open(tmp_path / "data").samples() if one.images][::2]
    for one in samples:
        s3.objects[key] = change(s3.objects[key], one.images[0])
    with whole(open_store(), {"dataset": tmp_path / "dataset"}, tmp_path / "scratch",
               {"dataset": "shards/"}) as paths:  # fmt: skip
        section = make_section(steps=2, max_quarantined=1.0)
        _, result = run(tmp_path, dataset=Dataset.open(paths["dataset"]), section=section)
    assert set(result.quarantined) <= {one.id for one in samples}
    assert len(result.quarantined) > 0


def test_only_what_shows_pictures_to_a_model_leaves_shards_in_the_bucket(s3, monkeypatch):
    monkeypatch.delenv("MANYEYES_SHARDS")
    asked = ("validate", "register", "prealign", "pretrain", "sft", "eval")
    assert [dict(left_behind(name)) for name in asked] == [{}] * 6
    monkeypatch.setenv("MANYEYES_SHARDS", "remote")
    assert [dict(left_behind(name)) for name in asked] == [{}] * 2 + [{"dataset": "shards/"}] * 4


def test_another_word_for_where_shards_are_is_refused(s3, monkeypatch):
    monkeypatch.setenv("MANYEYES_SHARDS", "s3")
    with pytest.raises(UserError) as caught:
        left_behind("sft")
    assert str(caught.value) == (
        "MANYEYES_SHARDS is 's3': say remote to read pictures from the bucket in training and "
        "evaluation, or local to fetch datasets whole, as without it."
    )
