"""A home or a store that can only be read, or whose file system has no locks, is read from."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from store_kit import FINGERPRINT, contents, put

from manyeyes.cli import main
from manyeyes.store import Store

ROOT = Path(__file__).parents[2]
FILES = {"weights.safetensors": os.urandom(100_000), "config.json": b"{}"}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A home with one result; its digest."""
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "home/store")
    put(store, tmp_path / "work", FILES)
    return store.lookup(FINGERPRINT).digest


@pytest.fixture
def read_only(stored, tmp_path, monkeypatch):
    """A read-only mount, which refuses root, too."""
    refuse_writes(tmp_path / "home", monkeypatch, errno.EROFS)
    return stored


@pytest.fixture
def not_allowed(stored, tmp_path, monkeypatch):
    """Another user's home."""
    refuse_writes(tmp_path / "home", monkeypatch, errno.EACCES)
    return stored


def refuse_writes(folder, monkeypatch, number):
    """Have the system refuse every write below a folder."""
    home, opening = str(folder), os.open

    def refused(path):
        return OSError(number, os.strerror(number), str(path))

    def open_(path, flags, *more, **words):
        if str(path).startswith(home) and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise refused(path)
        return opening(path, flags, *more, **words)

    def nothing(path, *_, **__):
        if str(path).startswith(home):
            raise refused(path)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "chmod", nothing)


@pytest.fixture
def no_locks(stored, monkeypatch):
    """A file system without locks, as NFS without its lock service."""

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    return stored


@pytest.mark.parametrize("home", ["read_only", "not_allowed", "no_locks"])
def test_a_result_is_pulled_from_a_home_that_can_only_be_read(home, tmp_path, request, capsys):
    digest = request.getfixturevalue(home)
    before = contents(tmp_path / "home")
    assert main(["data", "pull", digest, "--out", "out"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "work")
    assert contents(tmp_path / "home") == before
    assert capsys.readouterr().err == ""


def test_a_pointer_is_exported_from_a_home_that_can_only_be_read(read_only, tmp_path):
    store = Store(tmp_path / "home/store")
    entry = store.lookup(FINGERPRINT)
    store.checkout(entry.dir_id, tmp_path / "out")
    assert store.export_pointer(entry.dir_id, tmp_path / "out").is_file()


@pytest.mark.parametrize("home", ["read_only", "not_allowed", "no_locks"])
def test_a_stage_that_must_run_says_one_sentence(home, tmp_path, request, capsys):
    request.getfixturevalue(home)
    recipe = ROOT / "recipes/tiny/eagle-x5.yaml"
    assert main(["prepare", str(recipe), "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "set MANYEYES_HOME to a folder" in error
    assert not (tmp_path / "out").exists()


IMPORT = """
import sys
from manyeyes.data.sources import importing
def wait(*_):
    print("ready", flush=True)
    sys.stdin.read()
importing._add_all = wait
from manyeyes.cli import main
sys.exit(main(sys.argv[1:]))
"""


def importing(folder, name="data"):
    """Start an import that waits in its middle."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "x.json").write_text("[]")
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORT, "data", "import", "x.json", "--images", "images",
         "--out", name, "--licence", "MIT"],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_an_import_that_is_told_to_stop_leaves_nothing(tmp_path):
    process = importing(tmp_path)
    process.terminate()
    _, error = process.communicate()
    assert (process.returncode, error) == (75, "Stopped.\n")
    assert sorted(os.listdir(tmp_path)) == ["images", "x.json"]


def test_what_a_killed_import_left_goes_with_the_next_of_its_name(tmp_path):
    process = importing(tmp_path)
    process.kill()
    process.communicate()
    assert len(list(tmp_path.glob(".data.*"))) == 1
    other = importing(tmp_path, "other")
    other.terminate()
    other.communicate()
    assert len(list(tmp_path.glob(".data.*"))) == 1
    again = importing(tmp_path)
    again.terminate()
    again.communicate()
    assert sorted(os.listdir(tmp_path)) == ["images", "x.json"]


def test_registered_weights_are_brought_for_a_process_where_home_can_only_be_read(
    stored, tmp_path, monkeypatch
):
    from manyeyes.registry.weights import Weights

    store = Store(tmp_path / "home/store")
    entry = store.lookup(FINGERPRINT)
    making = os.mkdir

    def mkdir(path, *more, **words):
        if str(path).startswith(str(tmp_path / "home")):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        making(path, *more, **words)

    monkeypatch.setattr(os, "mkdir", mkdir)
    before = contents(tmp_path / "home")
    weights = Weights(digest=entry.digest, directory="", store=store.where, dir_id=entry.dir_id)
    assert contents(weights.bring()) == contents(tmp_path / "work")
    assert contents(tmp_path / "home") == before
    assert not (tmp_path / "home/models").exists()


def test_a_damaged_object_of_a_store_that_can_only_be_read_is_a_sentence(
    stored, tmp_path, monkeypatch, capsys
):
    largest = max((tmp_path / "home/store/files").rglob("*"), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    largest.write_bytes(b"?" + largest.read_bytes()[1:])
    refuse_writes(tmp_path / "home", monkeypatch, errno.EROFS)
    monkeypatch.setattr(Path, "replace", lambda *_: refused_replace())
    assert main(["data", "pull", stored, "--out", "out"]) == 1
    assert "does not have the md5 of its name" in capsys.readouterr().err


def refused_replace():
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
