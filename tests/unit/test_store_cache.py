"""The node's cache: its limit, what it evicts, and what it does when processes meet."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from manyeyes.store.cache import Cache

ROOT = Path(__file__).parents[2]


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def blob(letter, size=100):
    return letter.encode() * size


class Source:
    """Stands for the bucket; counts what is fetched."""

    def __init__(self):
        self.fetched = []

    def take(self, cache, data, target, *, link=False, wrong=0):
        calls = []

        def fill(partial):
            calls.append(1)
            self.fetched.append(data[:1].decode())
            partial.write_bytes(b"?" * len(data) if len(calls) <= wrong else data)

        target.parent.mkdir(parents=True, exist_ok=True)
        return cache.take(md5(data), len(data), fill, target, link=link)


@pytest.fixture
def source():
    return Source()


def test_an_object_is_fetched_once(tmp_path, source):
    cache = Cache(tmp_path / "cache", None)
    for name in ("one", "two"):
        entry = source.take(cache, blob("a"), tmp_path / name)
        assert (tmp_path / name).read_bytes() == blob("a")
        assert (entry.md5, entry.size) == (md5(blob("a")), 100)
    assert source.fetched == ["a"]


def test_a_copy_may_be_edited_and_a_link_shares_the_bytes(tmp_path, source):
    cache = Cache(tmp_path / "cache", None)
    source.take(cache, blob("a"), tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"edited")
    source.take(cache, blob("a"), tmp_path / "link", link=True)
    assert (tmp_path / "link").read_bytes() == blob("a")
    assert (tmp_path / "link").stat().st_nlink == 2
    assert source.fetched == ["a"]


def test_what_was_used_longest_ago_goes_first(tmp_path, source):
    cache = Cache(tmp_path / "cache", 300)
    for letter in "abc":
        source.take(cache, blob(letter), tmp_path / letter)
    source.take(cache, blob("a"), tmp_path / "a-again")
    source.take(cache, blob("d"), tmp_path / "d")  # b goes
    assert cache.used() == 300
    for letter in "acd":
        source.take(cache, blob(letter), tmp_path / f"{letter}-more")
    assert source.fetched == ["a", "b", "c", "d"]
    source.take(cache, blob("b"), tmp_path / "b-again")
    assert source.fetched == ["a", "b", "c", "d", "b"]


def test_what_is_in_use_stays_and_goes_when_it_is_not(tmp_path, source):
    cache = Cache(tmp_path / "cache", 150)
    source.take(cache, blob("a"), tmp_path / "a", link=True)
    source.take(cache, blob("b"), tmp_path / "b", link=True)
    assert cache.used() == 200
    (tmp_path / "a").unlink()
    cache.trim()
    assert cache.used() == 100
    assert (tmp_path / "b").read_bytes() == blob("b")


def test_an_object_above_the_limit_is_handed_out_all_the_same(tmp_path, source):
    cache = Cache(tmp_path / "cache", 50)
    source.take(cache, blob("a"), tmp_path / "a", link=True)
    assert (tmp_path / "a").read_bytes() == blob("a")


@pytest.mark.parametrize("link", [False, True])
def test_a_damaged_object_is_fetched_again(tmp_path, source, link):
    cache = Cache(tmp_path / "cache", None)
    source.take(cache, blob("a"), tmp_path / "one")
    (path,) = (path for path in (tmp_path / "cache/objects").rglob("*") if path.is_file())
    path.chmod(0o644)
    path.write_bytes(b"!" * 100)
    entry = source.take(cache, blob("a"), tmp_path / "two", link=link)
    assert entry.md5 == md5(blob("a"))
    assert (tmp_path / "two").read_bytes() == blob("a")
    assert source.fetched == ["a", "a"]


@pytest.mark.parametrize(("wrong", "right"), [(2, True), (3, False)])
def test_wrong_bytes_from_outside_are_not_believed(tmp_path, source, wrong, right):
    cache = Cache(tmp_path / "cache", None)
    entry = source.take(cache, blob("a"), tmp_path / "one", wrong=wrong)
    assert (entry.md5 == md5(blob("a"))) is right
    assert (tmp_path / "one").exists() is right


def test_what_cannot_be_linked_is_copied(tmp_path, source, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source.take(Cache(tmp_path / "cache", None), blob("a"), tmp_path / "one", link=True)
    assert (tmp_path / "one").stat().st_nlink == 1


def test_threads_that_want_one_object_fetch_it_once(tmp_path, source):
    cache = Cache(tmp_path / "cache", None)
    targets = [tmp_path / str(index) for index in range(8)]
    threads = [threading.Thread(target=source.take, args=[cache, blob("a"), target])
               for target in targets]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {target.read_bytes() for target in targets} == {blob("a")}
    assert source.fetched == ["a"]


PROCESS = """
import hashlib, sys
from pathlib import Path
from manyeyes.store.cache import Cache
folder, number = Path(sys.argv[1]), int(sys.argv[2])
cache = Cache(folder / "cache", 2_000)
for turn in range(40):
    letter = chr(97 + (turn * 7 + number * 3) % 12)
    data = letter.encode() * 500
    target = folder / f"{number}-{turn}"
    name = hashlib.md5(data).hexdigest()
    entry = cache.take(name, 500, lambda path: path.write_bytes(data), target, link=turn % 2 == 0)
    assert entry.md5 == name and target.read_bytes() == data
    if turn % 3:
        target.unlink()
"""


def test_processes_share_it_while_it_evicts(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, tmp_path, str(number)], env=environment)
        for number in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    for target in tmp_path.glob("[0-9]-*"):
        target.unlink()
    cache = Cache(tmp_path / "cache", 2_000)
    cache.trim()
    assert cache.used() <= 2_000
    assert list((tmp_path / "cache/partial").iterdir()) == []
