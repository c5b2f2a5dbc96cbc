"""An artifact lies on a disk once: the store, results and DVC's cache share their files."""

import errno
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
from store_kit import FINGERPRINT, contents, md5, put, write_artifact

from manyeyes.artifact.manifest import open_artifact
from manyeyes.pipeline import runner, stages
from manyeyes.runtime import home
from manyeyes.store import Store, object_key
from manyeyes.store.dvc import cache_of
from manyeyes.store.links import SMALL

LARGE = os.urandom(SMALL + 1)
FILES = {"weights.safetensors": LARGE, "config.json": b"{}", "empty": b""}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home/store")


@pytest.fixture
def stored(store, tmp_path):
    return put(store, tmp_path / "work", FILES)


def inode(path):
    return os.stat(path).st_ino


def weights_of(store):
    return store.root / object_key(md5(LARGE))


def test_what_goes_in_and_what_comes_out_is_one_file_that_is_read_only(store, stored, tmp_path):
    store.checkout(stored, tmp_path / "one")
    store.checkout(stored, tmp_path / "two")
    names = [
        weights_of(store),
        *(tmp_path / place / "weights.safetensors" for place in ("work", "one", "two")),
    ]
    assert len({inode(name) for name in names}) == 1
    assert {oct(os.stat(name).st_mode & 0o777) for name in names} == {"0o444"}


def test_a_small_file_may_be_edited_in_place(store, stored, tmp_path):
    store.checkout(stored, tmp_path / "one")
    (tmp_path / "one/config.json").write_text('{"mine": 1}')
    (tmp_path / "work/config.json").write_text('{"mine": 2}')
    store.checkout(stored, tmp_path / "two")
    assert contents(tmp_path / "two")["config.json"] == b"{}"


def test_a_large_file_that_is_replaced_leaves_the_store_as_it_was(store, stored, tmp_path):
    store.checkout(stored, tmp_path / "one")
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").rename(tmp_path / "one/weights.safetensors")
    store.checkout(stored, tmp_path / "two")
    open_artifact(tmp_path / "two", "checkpoint")


def test_a_result_can_be_removed_and_the_store_keeps_it(store, stored, tmp_path):
    store.checkout(stored, tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "work")
    assert store.fetch(FINGERPRINT, tmp_path / "two").dir_id == stored


NO_LINK = [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP]


@pytest.mark.parametrize("number", NO_LINK)
def test_where_no_link_can_be_it_is_a_copy(store, tmp_path, monkeypatch, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    dir_id = put(store, tmp_path / "work", FILES)
    store.checkout(dir_id, tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "work")
    assert len({inode(weights_of(store)), inode(tmp_path / "one/weights.safetensors")}) == 2


def test_another_users_file_that_may_still_change_is_copied(store, tmp_path, monkeypatch):
    manifest = write_artifact(tmp_path / "work", FILES)
    mine = os.chmod

    def refused(path, mode, **more):
        if "work" in str(path):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        mine(path, mode, **more)

    monkeypatch.setattr(os, "chmod", refused)
    store.put(tmp_path / "work", manifest)
    assert inode(weights_of(store)) != inode(tmp_path / "work/weights.safetensors")


def test_a_step_leaves_no_files_between_steps_and_works_on_links(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    write_dataset(tmp_path / "data")
    seen = []

    def call(stage, recipe_slice, context):
        seen.append(inode(context.inputs["dataset"] / "shard"))
        (context.out / "report").write_bytes(LARGE[::-1])
        return {}

    monkeypatch.setattr(stages, "ready", partial(partial, call))
    store = Store(tmp_path / "home/store")
    from manyeyes.store.pointer import write_pointer

    manifest = write_dataset(tmp_path / "data")
    write_pointer(store, store.put(tmp_path / "data", manifest), manifest, tmp_path / "pointer")
    slice_ = '{"seed":1,"validate":{}}'
    inputs = {"dataset": tmp_path / "pointer"}
    runner.run_stage("validate", slice_, inputs=inputs, out=tmp_path / "a", by_pointer=True)
    runner.run_stage("validate", slice_, inputs=inputs, out=tmp_path / "b")
    assert seen == [inode(tmp_path / "data/shard")]
    assert os.listdir(tmp_path / "a") == ["pointer.json"]
    assert inode(tmp_path / "b/report") == inode(store.root / object_key(md5(LARGE[::-1])))
    assert os.listdir(tmp_path / "home" / home.INPUTS) == []
    assert os.listdir(tmp_path / "home/locks") == []


def write_dataset(folder):
    from manyeyes.artifact.manifest import Header, write_manifest

    folder.mkdir(exist_ok=True)
    if not (folder / "shard").exists():
        (folder / "shard").write_bytes(LARGE)
    header = Header(
        kind="dataset", stage="prepare", name="prepare", recipe_slice="s", fingerprint="f" * 64,
        parents={}, code="c", revision="r", libraries={}, seed=1,
    )  # fmt: skip
    return write_manifest(folder, header)


CONFIGURATIONS = {
    "none": ({}, ".dvc/cache"),
    "repository": ({".dvc/config": "[cache]\n    dir = ../elsewhere\n"}, "elsewhere"),
    "quoted": ({".dvc/config": '[cache]\ndir = "../else where"\n'}, "else where"),
    "local wins": (
        {
            ".dvc/config": "[core]\n    remote = x\n[cache]\n    dir = ../one\n",
            ".dvc/config.local": "['remote \"x\"']\n    url = u\n[cache]\n    dir = ../two\n",
        },
        "two",
    ),
    "damaged": ({".dvc/config": "dir = \n]["}, ".dvc/cache"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_dvcs_cache_lies_where_its_configuration_says(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("DVC_SYSTEM_CONFIG_DIR", str(tmp_path / "machine"))
    files, expected = CONFIGURATIONS[name]
    (tmp_path / "project/.dvc").mkdir(parents=True)
    for file, text in files.items():
        (tmp_path / "project" / file).write_text(text)
    assert cache_of(tmp_path / "project/runs/a/sft") == tmp_path / "project" / expected
    assert cache_of(tmp_path / "outside") is None


def dvc(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, check=False, capture_output=True,
        text=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("cache", ["", "[cache]\n    dir = ../home/store\n"], ids=["own", "ours"])
def test_dvc_knows_a_result_and_carries_it_to_another_remote(tmp_path, cache):
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    (project / ".dvc/config").write_text(f"[core]\n    no_scm = true\n{cache}")
    store = Store(project / "home/store")
    dir_id = put(store, project / "work", FILES)
    store.checkout(dir_id, project / "runs/sft")
    store.export_pointer(dir_id, project / "runs/sft")
    assert dvc(project, "status", "runs/sft.dvc") == "Data and pipelines are up to date.\n"
    assert inode(project / "runs/sft/weights.safetensors") == inode(weights_of(store))
    dvc(project, "remote", "add", "other", str(tmp_path / "other"))
    dvc(project, "push", "-r", "other", "runs/sft.dvc")
    clone = tmp_path / "clone"
    (clone / ".dvc").mkdir(parents=True)
    (clone / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    shutil.copy(project / "runs/sft.dvc", clone)
    dvc(clone, "remote", "add", "-d", "other", str(tmp_path / "other"))
    dvc(clone, "pull", "sft.dvc")
    assert contents(clone / "sft") == contents(project / "work")
