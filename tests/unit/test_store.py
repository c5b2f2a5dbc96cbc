import json
import os
import threading

import pytest
from store_kit import FINGERPRINT, contents, md5, put, write_artifact

from manyeyes.artifact.manifest import open_artifact
from manyeyes.runtime.locks import OWNER
from manyeyes.store import DamagedObjectError, Store, object_key

FILES = {
    "weights.safetensors": b"weights",
    "sub/empty": b"",
    "sub-x": b"same bytes",
    "sub/é ü.txt": b"same bytes",
    ".hidden": b"h",
}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home/store")


@pytest.fixture
def stored(store, tmp_path):
    return put(store, tmp_path / "work", FILES, loss=0.5)


def objects(store):
    return sorted(path.name for path in (store.root / "files").rglob("*") if path.is_file())


def test_a_checkout_gives_back_every_byte(store, stored, tmp_path):
    store.checkout(stored, tmp_path / "deep/out")
    assert contents(tmp_path / "deep/out") == contents(tmp_path / "work")
    open_artifact(tmp_path / "deep/out", "checkpoint")


def test_a_checkout_replaces_what_was_there_and_leaves_nothing_else(store, stored, tmp_path):
    out = tmp_path / "results/out"
    write_artifact(out, {"stale": b"stale"})
    store.checkout(stored, out)
    assert not (out / "stale").exists()
    assert os.listdir(tmp_path / "results") == ["out"]


def test_an_edited_result_does_not_change_the_store(store, stored, tmp_path):
    store.checkout(stored, tmp_path / "one")
    (tmp_path / "one/weights.safetensors").write_bytes(b"changed")
    store.checkout(stored, tmp_path / "two")
    assert (tmp_path / "two/weights.safetensors").read_bytes() == b"weights"


def test_equal_files_are_stored_once_and_putting_again_adds_nothing(store, stored, tmp_path):
    before = objects(store)
    manifest = write_artifact(tmp_path / "again", FILES, loss=0.5)
    assert store.put(tmp_path / "again", manifest) == stored
    assert objects(store) == before
    assert len(before) == len(set(FILES.values())) + 2  # the manifest and the directory's list
    assert os.listdir(store.root / "tmp") == []


def test_a_directory_is_named_by_the_md5_of_its_sorted_list(store, stored):
    data = (store.root / object_key(stored)).read_bytes()
    rows = json.loads(data)
    assert md5(data) + ".dir" == stored
    assert data == json.dumps(rows, sort_keys=True).encode()
    assert [row["relpath"] for row in rows] == sorted([*FILES, "manifest.json"])


def test_a_lookup_tells_what_is_stored(store, stored, tmp_path):
    entry = store.lookup(FINGERPRINT)
    size = sum(path.stat().st_size for path in (tmp_path / "work").rglob("*") if path.is_file())
    assert (entry.dir_id, entry.num_files, entry.size) == (stored, 6, size)
    assert entry.details == {"loss": 0.5}


def test_an_unknown_fingerprint_is_a_miss(store):
    assert store.lookup("0" * 64) is None
    assert store.fetch("0" * 64, store.root.parent / "out") is None


WEIGHTS = object_key(md5(b"weights"))


def damage(store, stored, how):
    path = store.root / (WEIGHTS if how.startswith("weights") else object_key(stored))
    path.chmod(0o644)
    match how.split()[1]:
        case "missing":
            path.unlink()
        case "flipped":
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1])


MISSING = (
    "{key} is not in the content store {root}; "
    "run the same command again to make it, or fetch it with 'dvc pull'."
)
DAMAGED = (
    "{key} in the content store {root} does not have the md5 of its name; it was set aside, "
    "run the same command again to make it anew."
)
REASONS = {
    "weights missing": MISSING,
    "weights flipped": DAMAGED,
    "weights truncated": DAMAGED,
    "list missing": MISSING,
    "list flipped": DAMAGED,
}


@pytest.mark.parametrize("how", REASONS)
def test_damage_is_told_and_then_is_a_miss_until_stored_again(store, stored, tmp_path, how):
    damage(store, stored, how)
    out = tmp_path / "out"
    write_artifact(out, {"before": b"before"})
    before = contents(out)
    with pytest.raises(DamagedObjectError) as caught:
        store.checkout(stored, out)
    key = WEIGHTS if how.startswith("weights") else object_key(stored)
    assert str(caught.value) == REASONS[how].format(key=key, root=store.root)
    assert contents(out) == before
    assert list(tmp_path.glob(".out*")) == []
    assert store.lookup(FINGERPRINT) is None
    store.put(tmp_path / "work", write_artifact(tmp_path / "work", FILES, loss=0.5))
    assert store.fetch(FINGERPRINT, out).dir_id == stored


@pytest.mark.parametrize("how", REASONS)
def test_fetch_takes_damage_for_a_miss(store, stored, tmp_path, how):
    damage(store, stored, how)
    assert store.fetch(FINGERPRINT, tmp_path / "out") is None
    assert not (tmp_path / "out").exists()


def test_a_file_that_changed_after_its_manifest_is_not_stored(store, tmp_path):
    manifest = write_artifact(tmp_path / "work", FILES)
    (tmp_path / "work/weights.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(DamagedObjectError) as caught:
        store.put(tmp_path / "work", manifest)
    assert str(caught.value) == (
        f"{tmp_path}/work/weights.safetensors changed while it was stored: its md5 is "
        f"{md5(b'WEIGHTS')}, but the manifest says {md5(b'weights')}; run its stage again."
    )
    assert not (store.root / WEIGHTS).exists()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped"])
def test_a_list_that_leads_out_of_its_directory_is_refused(store, stored, tmp_path, name):
    rows = json.loads((store.root / object_key(stored)).read_bytes())
    data = json.dumps([*rows, {"md5": rows[0]["md5"], "relpath": name}], sort_keys=True).encode()
    dir_id = md5(data) + ".dir"
    (store.root / object_key(dir_id)).parent.mkdir(parents=True, exist_ok=True)
    (store.root / object_key(dir_id)).write_bytes(data)
    with pytest.raises(DamagedObjectError) as caught:
        store.checkout(dir_id, tmp_path / "out")
    assert str(caught.value) == (
        f"{object_key(dir_id)} in the content store {store.root} lists the file {name!r}; it was "
        "set aside, run the same command again to make it anew."
    )
    assert not (tmp_path / "escaped").exists()


def test_what_a_killed_checkout_left_is_cleared_by_the_next(store, stored, tmp_path):
    left = tmp_path / ".out.killed"
    left.mkdir()
    (left / OWNER).touch()
    (left / "junk").write_text("junk")
    store.checkout(stored, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "work")
    assert not left.exists()


def test_many_writers_and_readers_agree(store, tmp_path):
    failures = []

    def work(index):
        try:
            folder = tmp_path / f"work-{index}"
            dir_id = put(store, folder, FILES)
            store.checkout(dir_id, tmp_path / "out")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[index]) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert contents(tmp_path / "out") == contents(tmp_path / "work-0")
    assert store.lookup(FINGERPRINT) is not None
