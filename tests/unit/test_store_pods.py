"""What pods share through a bucket: pointers, states of training, records, names."""

import json
import shutil
import threading
from functools import partial

import pytest
from s3_kit import fake_s3, name_bucket

from manyeyes.artifact.files import CURVES_FILE
from manyeyes.artifact.manifest import MANIFEST, Header, write_manifest
from manyeyes.config.profile import parse_profile, storage_environment
from manyeyes.errors import GateRefused, Interrupted, UserError
from manyeyes.pipeline import runner, stages
from manyeyes.pipeline.worker import run_step
from manyeyes.store import open_store
from manyeyes.store.exchange import pull, push
from manyeyes.store.keeping import Keeper, keeper, kept
from manyeyes.store.pointer import read_pointer, write_pointer
from manyeyes.store.records import Records

PLACE = "s3://team/store"


@pytest.fixture(scope="module")
def server():
    with fake_s3() as running:
        yield running


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """A bucket named by the environment, and a pod with an empty home."""
    name_bucket(server, monkeypatch, PLACE)
    for name in ("MANYEYES_CACHE", "MANYEYES_CACHE_LIMIT", "MANYEYES_JOURNAL", "MANYEYES_LOGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MANYEYES_RUN", "run-1")
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "pod-1"))
    return server


def make_artifact(folder, files, *, kind="dataset", stage="prepare", fingerprint="f" * 64):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    header = Header(
        kind=kind, stage=stage, name=stage, recipe_slice="s", fingerprint=fingerprint,
        parents={}, code="c", revision="r", libraries={}, seed=1,
    )  # fmt: skip
    return write_manifest(folder, header)


def stored(folder, **more):
    manifest = make_artifact(folder, {"data": b"bytes"}, **more)
    return manifest, open_store().put(folder, manifest)


SLICE = '{"seed":1,"validate":{}}'


@pytest.fixture
def dataset(s3, tmp_path):
    """The pointer that an earlier pod left."""
    manifest, dir_id = stored(tmp_path / "made")
    write_pointer(open_store(), dir_id, manifest, tmp_path / "dataset")
    return tmp_path / "dataset"


def fake_stage(monkeypatch, work):
    calls = []

    def call(stage, recipe_slice, context):
        calls.append({role: (path / "data").read_bytes() for role, path in context.inputs.items()})
        return work(context.out) or {}

    monkeypatch.setattr(stages, "ready", partial(partial, call))
    return calls


def finish(out):
    (out / "report").write_bytes(b"result")


def test_a_step_fetches_by_pointer_and_leaves_one(s3, dataset, tmp_path, monkeypatch):
    calls = fake_stage(monkeypatch, finish)
    manifest = runner.run_stage(
        "validate", SLICE, inputs={"dataset": dataset}, out=tmp_path / "out", by_pointer=True
    )
    assert calls == [{"dataset": b"bytes"}]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pointer.json"]
    pointer = read_pointer(tmp_path / "out")
    assert (pointer.digest, pointer.kind, pointer.store) == (manifest.digest, "report", PLACE)
    assert list((tmp_path / "pod-1/inputs").iterdir()) == []


def test_another_pod_finds_the_result_and_fetches_no_input(s3, dataset, tmp_path, monkeypatch):
    calls = fake_stage(monkeypatch, finish)
    arguments = {"inputs": {"dataset": dataset}, "by_pointer": True}
    first = runner.run_stage("validate", SLICE, out=tmp_path / "one", **arguments)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "pod-2"))
    second = runner.run_stage("validate", SLICE, out=tmp_path / "two", **arguments)
    assert (second.digest, len(calls)) == (first.digest, 1)
    assert read_pointer(tmp_path / "two") == read_pointer(tmp_path / "one")
    assert not (tmp_path / "pod-2/cache").exists()


def test_a_person_gets_the_files_of_what_a_pod_made(s3, dataset, tmp_path, monkeypatch):
    fake_stage(monkeypatch, finish)
    for by_pointer, out in ((True, "pod"), (False, "person")):
        runner.run_stage(
            "validate", SLICE, inputs={"dataset": dataset}, out=tmp_path / out,
            by_pointer=by_pointer,
        )  # fmt: skip
    assert (tmp_path / "person/report").read_bytes() == b"result"


def test_in_a_folder_store_a_step_leaves_a_pointer_too(s3, tmp_path, monkeypatch):
    monkeypatch.delenv("MANYEYES_STORE")
    make_artifact(tmp_path / "dataset", {"data": b"bytes"})
    fake_stage(monkeypatch, finish)
    inputs = {"dataset": tmp_path / "dataset"}
    runner.run_stage("validate", SLICE, inputs=inputs, out=tmp_path / "out", by_pointer=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pointer.json"]
    pull(str(tmp_path / "out"), tmp_path / "person")
    assert (tmp_path / "person/report").read_bytes() == b"result"
    assert s3.requests == []


def test_a_pointer_to_something_else_is_refused(s3, dataset, tmp_path):
    pointer = read_pointer(dataset)
    forged = pointer.model_copy(update={"digest": "0" * 64})
    (dataset / "pointer.json").write_text(forged.model_dump_json())
    with pytest.raises(UserError) as caught:
        runner.run_stage("validate", SLICE, inputs={"dataset": dataset}, out=tmp_path / "out")
    assert str(caught.value) == (
        f"{dataset} points to 000000000000, but the content store has {pointer.digest[:12]} under "
        f"{pointer.dir_id}; run the step that wrote it again."
    )


def test_what_a_gate_refused_is_in_the_store_and_no_result(s3, dataset, tmp_path, monkeypatch):
    def refuse(out):
        finish(out)
        raise GateRefused("Too bad.")

    calls = fake_stage(monkeypatch, refuse)
    arguments = {"inputs": {"dataset": dataset}, "out": tmp_path / "out", "by_pointer": True}
    for _ in range(2):
        with pytest.raises(GateRefused) as caught:
            runner.run_stage("validate", SLICE, **arguments)
    assert len(calls) == 2
    words = str(caught.value).split()
    assert str(caught.value) == (
        f"Too bad. The full report is in the content store: manyeyes data pull {words[-3]} --out FOLDER."
    )
    assert (pull(words[-3], tmp_path / "evidence") / "report").read_bytes() == b"result"


def test_the_records_of_a_step_reach_the_steps_that_gather_them(s3, dataset, tmp_path, monkeypatch):
    fake_stage(monkeypatch, finish)
    run_step(
        "validate", SLICE, inputs={"dataset": str(dataset)}, out=str(tmp_path / "out"),
        fingerprint=fingerprint_of(dataset),
    )  # fmt: skip
    there = tmp_path / "pod-2/runs/run-1"
    records = Records(open_store(), "run-1", there)
    records.bring()
    assert json.loads((there / "stages/validate.json").read_text())["state"] == "done"
    assert list(there.glob("track/*/record.json")) or list(there.glob("track/*/*.json"))
    s3.requests.clear()
    records.send()
    assert s3.count("PUT") == 0


def fingerprint_of(dataset):
    from manyeyes.pipeline.fingerprint import fingerprint_text

    return fingerprint_text("validate", SLICE, {"dataset": read_pointer(dataset).digest})


def write_state(work, step, data=b"weights"):
    partial = work / f"state/step-{step}.tmp"
    partial.mkdir(parents=True)
    (partial / "weights.safetensors").write_bytes(data + str(step).encode())
    (partial / "frozen").write_bytes(b"the same in all")
    partial.rename(work / f"state/step-{step}")
    (work / CURVES_FILE).parent.mkdir(exist_ok=True)
    (work / CURVES_FILE).write_text("".join(f'{{"step": {n + 1}}}\n' for n in range(step)))


@pytest.fixture
def states(s3) -> Keeper:
    return keeper(open_store(), "a" * 64)


def again() -> Keeper:
    """The keeper of the pod that comes after."""
    return keeper(open_store(), "a" * 64)


def test_the_newest_state_comes_to_a_pod_with_an_empty_disk(states, s3, tmp_path):
    for step in (2, 4, 6):
        write_state(tmp_path / "old", step)
        states.send_newest(tmp_path / "old")
    assert again().bring(tmp_path / "new") == 6
    found = sorted(path.relative_to(tmp_path / "new").as_posix()
                   for path in (tmp_path / "new").rglob("*") if path.is_file())  # fmt: skip
    assert found == [CURVES_FILE, "state/step-6/frozen", "state/step-6/weights.safetensors"]
    assert (tmp_path / "new/state/step-6/weights.safetensors").read_bytes() == b"weights6"
    records = sorted(key.rsplit("/", 1)[1] for key in s3.objects if key.endswith(".json"))
    assert records == ["step-4.json", "step-6.json"]


def damage(s3, how):
    for key, data in list(s3.objects.items()):
        if data == b"weights4":
            if how == "gone":
                del s3.objects[key]
            if how == "wrong":
                s3.objects[key] = b"Weights4"
        if key.endswith("step-4.json") and how == "no record":
            del s3.objects[key]
        if key.endswith("step-4.json") and how == "no list":
            s3.objects[key] = b"{}"


@pytest.mark.parametrize("how", ["gone", "wrong", "no record", "no list"])
def test_a_state_that_is_not_whole_does_not_count(states, s3, tmp_path, how):
    for step in (2, 4):
        write_state(tmp_path / "old", step)
        states.send_newest(tmp_path / "old")
    damage(s3, how)
    assert again().bring(tmp_path / "new") == 2
    assert sorted(path.name for path in (tmp_path / "new/state").iterdir()) == ["step-2"]


def test_a_newer_state_on_this_disk_stays(states, tmp_path):
    write_state(tmp_path / "work", 2)
    states.send_newest(tmp_path / "work")
    write_state(tmp_path / "work", 4)
    assert again().bring(tmp_path / "work") is None


def test_the_last_state_before_a_signal_is_kept(states, tmp_path):
    def train():
        with kept(states, tmp_path / "old"):
            write_state(tmp_path / "old", 8)
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        train()
    assert again().bring(tmp_path / "new") == 8


def test_a_state_is_kept_while_the_stage_runs(states, tmp_path, monkeypatch):
    monkeypatch.setattr("manyeyes.store.keeping.WATCH_SECONDS", 0.01)
    sent = threading.Event()
    monkeypatch.setattr(states, "_tidy", sent.set)
    with kept(states, tmp_path / "old"):
        write_state(tmp_path / "old", 3)
        assert sent.wait(600)
    assert again().bring(tmp_path / "new") == 3


def test_a_bucket_that_refuses_states_does_not_stop_a_stage(states, s3, tmp_path):
    with kept(states, tmp_path / "old"):
        write_state(tmp_path / "old", 3)
        s3.fail("HEAD", "state/", "403", times=100)
        s3.fail("PUT", "state/", "403", times=100)
    with pytest.raises(Interrupted), kept(states, tmp_path / "old"):
        raise Interrupted("stopped")


def test_a_finished_stage_keeps_no_state(states, s3, tmp_path):
    write_state(tmp_path / "old", 2)
    states.send_newest(tmp_path / "old")
    states.clear()
    assert s3.objects == {}


def test_a_stage_continues_on_another_pod_and_leaves_no_state(s3, dataset, tmp_path, monkeypatch):
    def train(out):
        if (out / "state/step-5").exists():
            shutil.rmtree(out / "state")
            finish(out)
            return
        write_state(out, 5)
        raise Interrupted("stopped")

    fake_stage(monkeypatch, train)
    arguments = {"inputs": {"dataset": dataset}, "out": tmp_path / "out", "by_pointer": True}
    with pytest.raises(Interrupted):
        runner.run_stage("validate", SLICE, **arguments)
    assert [key for key in s3.objects if "/state/" in key]
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "pod-2"))
    runner.run_stage("validate", SLICE, **arguments)
    assert [key for key in s3.objects if "/state/" in key] == []


def test_what_is_pushed_is_pulled_by_any_of_its_names(s3, tmp_path, monkeypatch):
    manifest = make_artifact(tmp_path / "work", {"data": b"bytes"})
    pushed = push(tmp_path / "work")
    assert pushed.pointer == tmp_path / "work.dvc"
    store = open_store()
    write_pointer(store, pushed.dir_id, manifest, tmp_path / "pointer")
    names = [manifest.digest, manifest.fingerprint, pushed.dir_id, str(tmp_path / "work.dvc"),
             str(tmp_path / "pointer"), str(tmp_path / "pointer/pointer.json")]  # fmt: skip
    for index, name in enumerate(names):
        out = pull(name, tmp_path / str(index))
        assert (out / "data").read_bytes() == b"bytes"
    monkeypatch.chdir(tmp_path)
    assert str(pull(manifest.digest)) == manifest.digest[:12]


def test_a_pushed_dataset_has_a_name_that_keeps_its_content(s3, tmp_path):
    make_artifact(tmp_path / "charts", {"data": b"one"}, fingerprint="")
    assert push(tmp_path / "charts").name == "charts"
    first = open_store().named("charts")
    assert push(tmp_path / "charts").name == "charts"
    make_artifact(tmp_path / "other/charts", {"data": b"two"}, fingerprint="")
    with pytest.raises(UserError) as caught:
        push(tmp_path / "other/charts")
    assert str(caught.value) == (
        f"The content store {PLACE} has other content named 'charts' (digest "
        f"{first.digest[:12]}): a name never changes its content; choose another."
    )
    assert push(tmp_path / "other/charts", "more").name == "more"


def test_a_recipe_takes_a_pushed_dataset_where_there_is_no_data_folder(s3, tmp_path, monkeypatch):
    from manyeyes.pipeline.stages.prepare import _take_dataset

    make_artifact(tmp_path / "charts", {"shards/a": b"one"}, fingerprint="")
    push(tmp_path / "charts")
    monkeypatch.setenv("MANYEYES_DATA", str(tmp_path / "nothing"))
    (tmp_path / "work").mkdir()
    _take_dataset("charts", tmp_path / "work")
    assert (tmp_path / "work/shards/a").read_bytes() == b"one"
    assert not (tmp_path / "work" / MANIFEST).exists()


NOTHING = (
    "{!r} names nothing in a content store: give a content digest (64 digits), <md5>.dir, or the "
    "path of a pointer.json, its folder, or a .dvc file."
)


@pytest.mark.parametrize("what", ["nowhere", "nowhere.dvc", "abc123"])
def test_what_names_nothing_is_told(s3, what):
    with pytest.raises(UserError) as caught:
        pull(what)
    assert str(caught.value) == NOTHING.format(what)


def test_an_unknown_digest_is_told(s3):
    with pytest.raises(UserError) as caught:
        pull("0" * 64)
    assert str(caught.value) == (
        f"The content store {PLACE} has nothing whole with the digest or fingerprint {'0' * 64}."
    )


def test_a_pull_does_not_write_over_something_else(s3, tmp_path):
    manifest, _ = stored(tmp_path / "made")
    push(tmp_path / "made")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(UserError) as caught:
        pull(manifest.digest, tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path}/out exists and holds something else: give another folder with --out."
    )


@pytest.mark.parametrize(
    ("prefix", "endpoint", "shards", "expected"),
    [
        ("store/eagle/", "http://minio:9000", "local",
         {"MANYEYES_STORE": "s3://team/store/eagle", "AWS_ENDPOINT_URL": "http://minio:9000"}),
        ("", None, "local", {"MANYEYES_STORE": "s3://team"}),
        ("", None, "remote", {"MANYEYES_STORE": "s3://team", "MANYEYES_SHARDS": "remote"}),
    ],
    ids=["own server", "aws", "shards by ranges"],
)  # fmt: skip
def test_a_profiles_storage_is_told_by_variables(prefix, endpoint, shards, expected):
    from types import SimpleNamespace

    from manyeyes.config.profile import ClusterProfile, Storage

    storage = Storage(
        bucket="team", prefix=prefix, endpoint=endpoint, region="eu-central-1", secret=None,
        cache_path="/cache", cache_limit="200Gi", shards=shards,
    )  # fmt: skip
    profile = ClusterProfile.model_construct(**vars(SimpleNamespace(storage=storage)))
    assert storage_environment(profile) == {
        **expected, "AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-central-1", "MANYEYES_CACHE": "/cache",
        "MANYEYES_CACHE_LIMIT": "200Gi",
    }  # fmt: skip


def test_a_laptops_store_is_a_folder():
    profile = parse_profile("profile:\n  kind: laptop\n  name: here\n", "laptop.yaml")
    assert storage_environment(profile) == {}
