"""Locks and scratch folders: held while their process lives, and gone soon after."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from manyeyes.errors import UserError
from manyeyes.runtime import locks
from manyeyes.runtime.locks import HeldElsewhere, held, is_held, remove_stale, scratch


def test_a_lock_leaves_no_file(tmp_path):
    path = tmp_path / "locks/one.lock"
    with held(path):
        assert is_held(path)
        with pytest.raises(HeldElsewhere), held(path, wait=False):
            raise AssertionError
    assert list(path.parent.iterdir()) == []
    assert not is_held(path)


def test_of_many_that_wait_one_at_a_time_holds_the_lock(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(20):
            with held(tmp_path / "one.lock"):
                inside.append(1)
                time.sleep(0)  # lets another thread in, if there is nothing to hold it
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 120
    assert set(most) == {1}
    assert list(tmp_path.iterdir()) == []


def refuse(monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch):
    refuse(monkeypatch, errno.ENOLCK)
    with pytest.raises(UserError) as caught, held(tmp_path / "one.lock"):
        raise AssertionError
    assert str(caught.value) == (
        f"The file system of {tmp_path} cannot lock files (No locks available), which keeps two "
        "processes from writing one result: set MANYEYES_HOME to a folder of a local disk."
    )


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_can_only_be_read_is_one_sentence(tmp_path, monkeypatch, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.os, "open", refused)
    with pytest.raises(UserError) as caught, held(tmp_path / "one.lock"):
        raise AssertionError
    assert str(caught.value) == (
        f"Cannot write {tmp_path}/one.lock ({os.strerror(number)}): set MANYEYES_HOME to a folder "
        "that can be written; what is there can be read as it is."
    )


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EROFS])
def test_who_shares_nothing_goes_on_without_a_lock(tmp_path, monkeypatch, number):
    refuse(monkeypatch, number)
    with held(tmp_path / "one.lock", optional=True):
        pass


HOLD = """
import sys, time
from pathlib import Path
from manyeyes.runtime.locks import scratch
with scratch(Path(sys.argv[1]), ".data.") as folder:
    (folder / "half").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a scratch folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_the_next_folder_of_a_kind_removes_what_a_killed_process_left(tmp_path, holder):
    (tmp_path / ".data.mine").mkdir()  # not marked: somebody else's
    (tmp_path / ".other.x").mkdir()
    with scratch(tmp_path, ".data."):
        assert len(list(tmp_path.glob(".data.*/work/half"))) == 1  # its process lives
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with scratch(tmp_path, ".data.") as folder:
        assert list(tmp_path.glob(".data.*/work/half")) == []
        assert folder.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data.mine", ".other.x"]


def test_a_marked_folder_of_another_user_is_left_alone(tmp_path, monkeypatch):
    folder = tmp_path / ".data.x"
    folder.mkdir()
    (folder / locks.OWNER).touch()
    monkeypatch.setattr(locks.os, "getuid", lambda: os.stat(folder).st_uid + 1)
    assert remove_stale(tmp_path, ".data.") == []
    assert folder.is_dir()


def test_where_files_cannot_be_locked_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    refuse(monkeypatch, errno.ENOLCK)
    with scratch(tmp_path, ".data."):
        assert remove_stale(tmp_path, ".data.") == []
    assert list(tmp_path.iterdir()) == []
