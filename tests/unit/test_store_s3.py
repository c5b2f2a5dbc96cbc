"""The store in a bucket, against a server that behaves and misbehaves like S3."""

import threading

import pytest
from s3_kit import fake_s3
from store_kit import FINGERPRINT, contents, md5, put, write_artifact

from manyeyes.artifact.manifest import open_artifact
from manyeyes.errors import UserError
from manyeyes.runtime.retry import RetryPolicy
from manyeyes.store import DamagedObjectError, Store, object_key, open_store, transfer
from manyeyes.store.bucket import Address, Bucket, make_client
from manyeyes.store.cache import Cache
from manyeyes.store.retry import StoreUnreachableError
from manyeyes.store.s3 import S3Backend

PLACE = "s3://team/some/prefix"
PART = 1000
QUICK = RetryPolicy(seconds=5.0, first=0.001, longest=0.01)


@pytest.fixture(scope="module")
def server():
    with fake_s3() as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    """One client for all: boto3 takes a second to make one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        return make_client()


@pytest.fixture
def s3(server, monkeypatch):
    server.reset()
    monkeypatch.setattr(transfer, "PART_BYTES", PART)
    return server


@pytest.fixture
def make_store(client):
    def make(folder, limit=None, policy=QUICK):
        bucket = Bucket(Address.parse(PLACE), client, policy)
        return Store(folder / "store", S3Backend(bucket, Cache(folder / "cache", limit)))

    return make


@pytest.fixture
def store(s3, make_store, tmp_path):
    return make_store(tmp_path / "home")


FILES = {
    "weights.safetensors": bytes(range(256)) * 14,  # 3584 bytes: four parts
    "empty": b"",
    "sub/é ü.txt": b"same bytes",
    "copy.txt": b"same bytes",
}
WEIGHTS = object_key(md5(FILES["weights.safetensors"]))


@pytest.mark.parametrize("link", [False, True])
def test_what_one_machine_stored_another_finds_by_its_fingerprint(
    s3, store, make_store, tmp_path, link
):
    dir_id = put(store, tmp_path / "work", FILES)
    other = make_store(tmp_path / "other")
    entry = other.lookup(FINGERPRINT)
    assert entry.dir_id == dir_id
    assert other.find(entry.digest) == entry
    other.checkout(dir_id, tmp_path / "out", link=link)
    assert contents(tmp_path / "out") == contents(tmp_path / "work")
    open_artifact(tmp_path / "out", "checkpoint")


def test_the_keys_are_dvcs_below_the_prefix(s3, store, tmp_path):
    dir_id = put(store, tmp_path / "work", FILES)
    manifest = store.manifest(dir_id)
    names = [md5(data) for data in FILES.values()]
    names += [md5((tmp_path / "work/manifest.json").read_bytes()), dir_id]
    index = {f"index/{FINGERPRINT}.json", f"index/digest/{manifest.digest}.json"}
    expected = {object_key(name) for name in names} | index
    assert set(s3.objects) == {f"team/some/prefix/{key}" for key in expected}


def test_what_is_there_is_neither_sent_nor_fetched_again(s3, store, tmp_path):
    dir_id = put(store, tmp_path / "work", FILES)
    store.checkout(dir_id, tmp_path / "one")
    s3.requests.clear()
    assert store.put(tmp_path / "work", write_artifact(tmp_path / "work", FILES)) == dir_id
    store.checkout(dir_id, tmp_path / "two")
    assert s3.count("PUT") == s3.count("POST") == 0
    assert s3.count("GET", WEIGHTS) == 0


UP = [("PUT", "500"), ("PUT", "503"), ("PUT", "refuse"), ("POST", "500"), ("HEAD", "503")]
DOWN = [(method, kind) for method, kind in [("GET", "500"), ("GET", "503"), ("GET", "refuse"),
        ("GET", "drop"), ("GET", "wrong"), ("HEAD", "500")]]  # fmt: skip


@pytest.mark.parametrize(("method", "kind"), UP)
def test_a_failing_server_costs_an_upload_nothing(s3, store, make_store, tmp_path, method, kind):
    s3.fail(method, WEIGHTS, kind, times=2)
    dir_id = put(store, tmp_path / "work", FILES)
    assert s3.faults[0].times == 0
    make_store(tmp_path / "other").checkout(dir_id, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "work")


@pytest.mark.parametrize(("method", "kind"), DOWN)
def test_a_failing_server_costs_a_download_nothing(s3, store, tmp_path, method, kind):
    dir_id = put(store, tmp_path / "work", FILES)
    s3.fail(method, WEIGHTS, kind, times=2)
    store.checkout(dir_id, tmp_path / "out")
    assert s3.faults[0].times == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "work")


def test_a_killed_upload_sends_the_missing_parts_only(s3, make_store, tmp_path):
    patient = make_store(tmp_path / "home", policy=RetryPolicy(0.0, 0.001, 0.001))
    s3.fail("PUT", "partNumber=3", "500", times=1)
    with pytest.raises(StoreUnreachableError):
        put(patient, tmp_path / "work", FILES)
    ((_, parts),) = s3.uploads.values()
    there = set(parts)
    assert 3 not in there
    s3.requests.clear()
    put(make_store(tmp_path / "again"), tmp_path / "work", FILES)
    sent = {int(path.split("partNumber=")[1][0]) for method, path in s3.requests
            if "partNumber=" in path}  # fmt: skip
    assert sent == {1, 2, 3, 4} - there
    assert s3.objects[f"team/some/prefix/{WEIGHTS}"] == FILES["weights.safetensors"]
    assert s3.uploads == {}


def test_a_killed_download_fetches_the_missing_parts_only(s3, store, make_store, tmp_path):
    dir_id = put(store, tmp_path / "work", FILES)
    impatient = make_store(tmp_path / "home", policy=RetryPolicy(0.0, 0.001, 0.001))
    s3.fail("GET", WEIGHTS, "500", times=1)
    with pytest.raises(StoreUnreachableError):
        impatient.checkout(dir_id, tmp_path / "out")
    fetched = s3.count("GET", WEIGHTS) - 1
    s3.requests.clear()
    store.checkout(dir_id, tmp_path / "out")
    assert s3.count("GET", WEIGHTS) == 4 - fetched
    assert contents(tmp_path / "out") == contents(tmp_path / "work")


def test_a_server_that_cannot_list_uploads_gets_a_new_one(s3, store, tmp_path):
    s3.lists_uploads = False
    put(store, tmp_path / "work", FILES)
    assert s3.objects[f"team/some/prefix/{WEIGHTS}"] == FILES["weights.safetensors"]


def test_an_upload_that_another_process_finished_is_done(s3, store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(FILES["weights.safetensors"])
    s3.objects[f"team/some/prefix/{WEIGHTS}"] = FILES["weights.safetensors"]
    s3.uploads["gone"] = (f"team/some/prefix/{WEIGHTS}", {})

    class Vanishing(dict):
        def get(self, key, default=None):
            return None if key == "gone" else super().get(key, default)

    s3.uploads = Vanishing(s3.uploads)
    entry = store.backend.put_file(source, WEIGHTS)
    assert entry.md5 == md5(FILES["weights.safetensors"])


def test_a_file_that_changes_while_it_is_sent_is_not_stored(s3, store, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(FILES["weights.safetensors"])
    real = transfer.read_digests

    def read_then_change(path):
        digests = real(path)
        path.write_bytes(b"!" * 3584)
        return digests

    monkeypatch.setattr(transfer, "read_digests", read_then_change)
    with pytest.raises(StoreUnreachableError) as caught:
        store.backend.put_file(source, WEIGHTS)
    assert str(caught.value) == (
        f"{source} changed while it was sent to the content store; run its stage again."
    )
    assert f"team/some/prefix/{WEIGHTS}" not in s3.objects


def test_a_damaged_object_of_the_cache_is_fetched_again(s3, store, tmp_path):
    dir_id = put(store, tmp_path / "work", FILES)
    store.checkout(dir_id, tmp_path / "one")
    name = md5(FILES["weights.safetensors"])
    cached = tmp_path / "home/cache/objects" / name[:2] / name[2:]
    cached.chmod(0o644)
    cached.write_bytes(b"x" + FILES["weights.safetensors"][1:])
    s3.requests.clear()
    store.checkout(dir_id, tmp_path / "two")
    assert contents(tmp_path / "two") == contents(tmp_path / "work")
    assert s3.count("GET", WEIGHTS) == 4


def test_a_damaged_object_of_the_bucket_is_set_aside_and_made_anew(s3, store, tmp_path):
    dir_id = put(store, tmp_path / "work", FILES)
    key = f"team/some/prefix/{WEIGHTS}"
    s3.objects[key] = b"x" + s3.objects[key][1:]
    with pytest.raises(DamagedObjectError) as caught:
        store.checkout(dir_id, tmp_path / "out")
    assert str(caught.value) == (
        f"{WEIGHTS} in the content store {PLACE} does not have the md5 of its name; it was set "
        "aside, run the same command again to make it anew."
    )
    assert key not in s3.objects
    assert [name for name in s3.objects if "/damaged/" in name]
    assert not (tmp_path / "out").exists()
    assert store.fetch(FINGERPRINT, tmp_path / "out") is None
    put(store, tmp_path / "work", FILES)
    store.checkout(dir_id, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "work")


def test_a_server_that_stays_away_is_one_sentence_and_nothing_is_half_written(
    s3, store, make_store, tmp_path
):
    dir_id = put(store, tmp_path / "work", FILES)
    impatient = make_store(tmp_path / "other", policy=RetryPolicy(0.05, 0.01, 0.01))
    s3.fail("GET", WEIGHTS, "503", times=10_000)
    with pytest.raises(StoreUnreachableError) as caught:
        impatient.checkout(dir_id, tmp_path / "out")
    assert str(caught.value).startswith(f"The content store {PLACE} did not answer for 0 s (An er")
    assert str(caught.value).endswith(
        "check AWS_ENDPOINT_URL and that it runs, then run the same command again; what was "
        "finished is kept."
    )
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out*")) == []


def test_no_access_is_told_at_once(s3, store, tmp_path):
    s3.fail("GET", FINGERPRINT, "403")
    with pytest.raises(UserError) as caught:
        store.lookup(FINGERPRINT)
    assert str(caught.value) == (
        f"The content store {PLACE} refuses access (AccessDenied): check the AWS credentials and "
        "what they may do in this bucket."
    )


def test_a_bucket_that_is_not_there_is_told_at_once(s3, store):
    s3.buckets.clear()
    with pytest.raises(UserError) as caught:
        store.lookup(FINGERPRINT)
    assert str(caught.value) == (
        f"The bucket of the content store {PLACE} does not exist: create it, or correct "
        "MANYEYES_STORE."
    )


def test_many_machines_write_and_read_at_once(s3, make_store, tmp_path):
    failures, folder = [], tmp_path / "node"

    def work(index):
        try:
            store = make_store(folder)
            dir_id = put(store, tmp_path / f"work-{index}", FILES)
            store.checkout(dir_id, tmp_path / f"out-{index}", link=bool(index % 2))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[index]) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for index in range(6):
        assert contents(tmp_path / f"out-{index}") == contents(tmp_path / "work-0")


def test_a_long_list_of_keys_comes_in_pages(s3, store):
    s3.page = 2
    for name in "abcde":
        store.backend.write(f"index/{name}.json", b"{}")
    keys = list(store.backend.bucket.keys("index/"))
    assert keys == [f"index/{name}.json" for name in "abcde"]


@pytest.mark.parametrize(
    ("size", "part", "count"),
    [(0, 16 << 20, 0), (1, 16 << 20, 1), (16 << 20, 16 << 20, 1), ((16 << 20) + 1, 16 << 20, 2),
     (1 << 40, 128 << 20, 8192)],
)  # fmt: skip
def test_a_file_is_cut_into_no_more_parts_than_s3_allows(size, part, count):
    cut = transfer.Parts.of(size)
    assert (cut.part, cut.count) == (part, count)
    assert sum(cut.span(index)[1] for index in range(cut.count)) == size


@pytest.mark.parametrize("text", ["s3://", "https://team/store", "relative/folder", "s3://a/b?c"])
def test_a_strange_address_is_refused(monkeypatch, text):
    monkeypatch.setenv("MANYEYES_STORE", text)
    with pytest.raises(UserError) as caught:
        open_store()
    assert str(caught.value) == (
        f"{text!r} is not the address of a store: write s3://BUCKET/PREFIX in MANYEYES_STORE, or "
        "unset it to use a folder of this machine."
    )


def test_the_environment_says_which_store_and_which_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path))
    monkeypatch.delenv("MANYEYES_STORE", raising=False)
    assert open_store().where == str(tmp_path / "store")
    monkeypatch.setenv("MANYEYES_STORE", "s3://team/some/prefix/")
    monkeypatch.delenv("MANYEYES_CACHE", raising=False)
    monkeypatch.delenv("MANYEYES_CACHE_LIMIT", raising=False)
    assert open_store().where == PLACE
    assert open_store().backend.cache == Cache(tmp_path / "cache", 50 << 30)
    monkeypatch.setenv("MANYEYES_CACHE", "/cache")
    assert str(open_store().backend.cache.root) == "/cache"
    assert open_store(str(tmp_path / "other")).where == str(tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "limit"),
    [("200Gi", 200 << 30), ("500M", 500_000_000), ("1.5k", 1500), ("123", 123), ("0", None)],
)
def test_the_limit_is_a_kubernetes_quantity(monkeypatch, text, limit):
    monkeypatch.setenv("MANYEYES_STORE", PLACE)
    monkeypatch.setenv("MANYEYES_CACHE_LIMIT", text)
    assert open_store().backend.cache.limit == limit


@pytest.mark.parametrize("text", ["much", "5 GB", "-1", "10m", "1Mb"])
def test_a_limit_that_is_no_quantity_is_refused(monkeypatch, text):
    monkeypatch.setenv("MANYEYES_STORE", PLACE)
    monkeypatch.setenv("MANYEYES_CACHE_LIMIT", text)
    with pytest.raises(UserError) as caught:
        open_store()
    assert str(caught.value) == (
        f"MANYEYES_CACHE_LIMIT is {text!r}: give a quantity of bytes such as 200Gi or 500M."
    )


def test_behind_another_endpoint_only_required_checksums_are_sent(client, monkeypatch):
    assert client.meta.config.request_checksum_calculation == "when_required"
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    assert make_client().meta.config.request_checksum_calculation == "when_supported"
