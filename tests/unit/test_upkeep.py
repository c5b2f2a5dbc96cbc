"""``gc`` and ``du``: what somebody holds stays, and who does not answer stops it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_kit import contents, md5, write_artifact

from manyeyes.artifact.manifest import MANIFEST
from manyeyes.cli import main
from manyeyes.cli.storage import readable
from manyeyes.errors import UserError
from manyeyes.registry import known as registries
from manyeyes.runtime.locks import held
from manyeyes.store import Store, object_key, places
from manyeyes.store.exchange import push
from manyeyes.store.pointer import write_pointer
from manyeyes.upkeep.collect import collect, garbage
from manyeyes.upkeep.gitrefs import hashes_in

SHARED = b"what every result has"


@pytest.fixture
def project(home, tmp_path, monkeypatch):
    """A git project with its state in it, as a user has it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setenv("MANYEYES_HOME", str(folder / ".manyeyes"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(folder)
    git("init", "--quiet", "-b", "main")
    git("config", "user.email", "a@b.c")
    git("config", "user.name", "a")
    Path(".gitignore").write_text("/.manyeyes/\n/runs/**\n!/runs/**/\n!/runs/**/*.dvc\n/work/\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    return folder


def git(*words):
    subprocess.run(["git", *words], check=True, capture_output=True)


@pytest.fixture
def store(project):
    return Store(project / ".manyeyes/store")


def made(store, name):
    """Store a result of its own content that only the index knows; return its directory's id."""
    folder = store.root.parents[1] / "work" / name
    files = {"weights": name.encode() * 80_000, "shared": SHARED}
    manifest = write_artifact(folder, files)
    dir_id = store.put(folder, manifest)
    store.remember(md5(name.encode()) * 2, dir_id, manifest.digest)
    shutil.rmtree(folder)
    return dir_id


def exported(store, name):
    """Store a result and put it into ``runs/NAME/sft``, as ``run`` does."""
    dir_id = made(store, name)
    out = store.root.parents[1] / "runs" / name / "sft"
    store.checkout(dir_id, out)
    store.export_pointer(dir_id, out)
    return dir_id


def there(store, dir_id):
    return store.root.joinpath(object_key(dir_id)).exists()


def commit(name):
    git("add", f"runs/{name}/sft.dvc")
    git("commit", "--quiet", "-m", name)


def drop(name):
    """Remove a result's folder with its pointer."""
    shutil.rmtree(f"runs/{name}")


def on_a_branch(store):
    git("switch", "--quiet", "-c", "other")
    commit("a")
    git("switch", "--quiet", "main")


def on_a_tag(store):
    on_a_branch(store)
    git("tag", "-a", "v1", "-m", "v1", "other")
    git("branch", "--quiet", "-D", "other")


def in_a_stash(store):
    git("add", "runs/a/sft.dvc")
    git("stash", "--quiet")
    Path("x").write_text("x")
    git("add", "x")
    git("stash", "--quiet")  # a second one: the first is in the log of refs/stash alone


def in_history(store):
    commit("a")
    git("rm", "--quiet", "--cached", "runs/a/sft.dvc")
    git("commit", "--quiet", "-m", "removed")


def in_a_merged_side(store):
    on_a_branch(store)
    Path("y").write_text("y")
    git("add", "y")
    git("commit", "--quiet", "-m", "y")
    git("merge", "--quiet", "-s", "ours", "-m", "merge", "other")
    git("branch", "--quiet", "-D", "other")


def in_a_worktree(store):
    git("worktree", "add", "--quiet", "--detach", "../tree")
    Path("../tree/copy.dvc").write_text(Path("runs/a/sft.dvc").read_text())


def in_a_lock(store):
    pointer = Path("runs/a/sft.dvc").read_text()
    Path("dvc.lock").write_text(f"schema: '2.0'\nstages:\n  sft:\n{pointer}")


def elsewhere(store):
    dir_id = hashes_in(Path("runs/a/sft.dvc").read_bytes())
    store.checkout(*dir_id, Path("../elsewhere/sft").absolute())
    store.export_pointer(*dir_id, Path("../elsewhere/sft").absolute())


def by_manifest(store):
    dir_id = hashes_in(Path("runs/a/sft.dvc").read_bytes())
    store.checkout(*dir_id, Path("../single").absolute())
    store.note(Path("../single").absolute() / MANIFEST)


def by_name(store):
    (dir_id,) = hashes_in(Path("runs/a/sft.dvc").read_bytes())
    store.name("mine", dir_id, store.entry(dir_id).digest)


def unfinished(store):
    (dir_id,) = hashes_in(Path("runs/a/sft.dvc").read_bytes())
    write_pointer(store, dir_id, store.manifest(dir_id), store.root.parent / "kfp/run-1/sft/model")


def in_its_folder(store):
    pass


HOLDERS = {
    "runs folder": (in_its_folder, "results"),
    "branch": (on_a_branch, "git"),
    "tag": (on_a_tag, "git"),
    "stash": (in_a_stash, "git"),
    "history": (in_history, "git"),
    "merged side": (in_a_merged_side, "git"),
    "worktree": (in_a_worktree, "git"),
    "dvc.lock": (in_a_lock, "git"),
    "elsewhere": (elsewhere, "results"),
    "single stage": (by_manifest, "results"),
    "dataset's name": (by_name, "dataset"),
    "unfinished run": (unfinished, "unfinished"),
}


@pytest.mark.parametrize("how", HOLDERS)
def test_what_somebody_holds_stays(store, how):
    kept, gone = exported(store, "a"), made(store, "b")
    hold, kind = HOLDERS[how]
    hold(store)
    if how != "runs folder":
        shutil.rmtree("runs", ignore_errors=True)
    found = collect(store)
    assert kind in {holder.kind for holder in found.holders}
    assert found.results == [gone]
    assert (there(store, kept), there(store, gone)) == (True, False)
    assert store.entry(kept).num_files == 3
    store.checkout(kept, Path("out").absolute())
    assert collect(store).objects == frozenset()


def test_a_result_whose_folder_was_removed_may_go_and_its_neighbours_files_stay(store):
    kept, gone = exported(store, "a"), exported(store, "b")
    before = contents(store.root)
    drop("b")
    found = garbage(store)
    assert contents(store.root) == before  # a dry run
    assert found.results == [gone]
    assert found.made_by == {gone: "sft"}
    assert md5(SHARED) not in found.objects
    assert len(found.objects) == 3  # the list, the manifest, the weights
    assert found.freed == found.size > 80_000
    collect(store)
    assert store.lookup(md5(b"b") * 2) is None
    assert store.lookup(md5(b"a") * 2).dir_id == kept
    assert [Path(one.pointer).parent.name for one in places.read(store.root.parent)] == ["a"]


def test_the_disk_gets_nothing_back_for_what_lies_elsewhere_too(store, tmp_path):
    dir_id = exported(store, "a")
    os.link("runs/a/sft/weights", tmp_path / "mine")
    drop("a")
    found = collect(store)
    assert found.results == [dir_id]
    assert found.size - found.freed == 80_000
    assert (tmp_path / "mine").read_bytes() == b"a" * 80_000


def test_a_fresh_result_of_a_run_that_goes_on_stays(store):
    with held(store.root.parent / "locks/run-one.lock"):
        dir_id = made(store, "a")
        found = garbage(store)
        assert [(one.kind, one.name) for one in found.holders] == [("running", "run-one")]
        assert found.objects == frozenset()
        old = time.time() + 3600  # what was there long before it began
        os.utime(store.root.parent / "locks/run-one.lock", (old, old))
        assert dir_id in garbage(store).objects


def test_a_second_gc_waits_for_nobody(store):
    with held(store.root.parent / "locks/gc.lock"), pytest.raises(UserError) as caught:
        collect(store)
    assert str(caught.value) == "Another gc is at work; wait for it."


def broken_project(store, monkeypatch):
    shutil.rmtree(".git")
    Path(".git").write_text("gitdir: /nowhere\n")
    return (
        f"the git project {Path.cwd()} does not answer (fatal: not a git repository: /nowhere)",
        str(Path.cwd()),
    )


def no_git(store, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    place = str(Path.cwd())
    return f"the git project {place} does not answer (git: No such file or directory)", place


def disk_away(store, monkeypatch):
    path = store.root.parent / places.FILE
    line = {"pointer": "/mnt/far/runs/a/sft.dvc", "project": "", "device": 0}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return "the disk of /mnt/far/runs/a/sft.dvc is not here", "/mnt/far"


def registry_gone(store, monkeypatch):
    uri = f"sqlite:///{store.root.parent}/other.db"
    registries.remember(uri)
    return f"the registry {uri} does not answer (there is no such file)", uri


def server_away(store, monkeypatch):
    uri = "http://127.0.0.1:9"
    registries.remember("http://me:secret@127.0.0.1:9")
    return (
        f"the registry {uri} does not answer (MLflow at {uri} did not answer as it should "
        "([Errno 111] Connection refused): check MLFLOW_TRACKING_URI and that the server runs, "
        "then run the same command again.)",
        uri,
    )


SILENT = [broken_project, no_git, disk_away, registry_gone, server_away]


@pytest.mark.parametrize("silence", SILENT, ids=lambda silence: silence.__name__)
def test_who_does_not_answer_stops_it_until_forgotten(store, monkeypatch, capsys, silence):
    exported(store, "a")
    gone = made(store, "b")
    said, name = silence(store, monkeypatch)
    before = contents(store.root)
    for apply in ([], ["--apply"]):
        assert main(["gc", *apply]) == 2
        assert capsys.readouterr().err == (
            f"Nothing was removed: {said}. Let all answer, or name what is gone for good with "
            "--forget.\n"
        )
    assert contents(store.root) == before
    assert main(["gc", "--apply", "--json", "--forget", name]) == 0
    assert gone in {one["dir_id"] for one in json.loads(capsys.readouterr().out)["results"]}


@pytest.mark.parametrize(
    ("days", "shown"), [("soon", "'soon'"), ("-1", "-1"), ("nan", "nan"), ("inf", "inf")]
)
def test_days_are_a_number(days, shown, capsys):
    assert main(["gc", f"--older-than={days}"]) == 2
    assert capsys.readouterr().err == (
        f"--older-than is {shown}; give a number of days, 0 or more.\n"
    )


def test_a_password_is_not_written_down(store):
    registries.remember("https://me:secret@host:1/path")
    registries.remember("https://me:other@host:1/path")
    text = (store.root.parent / registries.FILE).read_text()
    assert text == '{"uri": "https://host:1/path"}\n'


def test_a_bucket_is_not_collected(monkeypatch, capsys, project):
    monkeypatch.setenv("MANYEYES_STORE", "s3://team/store")
    assert main(["gc"]) == 2
    assert capsys.readouterr().err == (
        "gc looks after the store of this machine, but MANYEYES_STORE names s3://team/store: "
        "unset it, or use 'dvc gc -c' for the bucket.\n"
    )


def test_every_registered_version_holds_its_weights_and_an_alias_what_they_were_made_from(store):
    from manyeyes.registry.versions import PROVENANCE, WEIGHTS, Provenance
    from manyeyes.registry.weights import Weights
    from manyeyes.tracking.store import open_store

    ids = {name: made(store, name) for name in ("one", "data-1", "two", "data-2", "free")}
    client = open_store()
    client.create_registered_model("eagle")
    for number, name in enumerate(("one", "two"), 1):
        weights = Weights(
            digest=store.entry(ids[name]).digest, directory="", store=store.where, dir_id=ids[name]
        )
        provenance = Provenance(
            recipe="r", recipe_digest="d", experts={}, revision="x",
            data={"dataset": store.entry(ids[f"data-{number}"]).digest},
        )  # fmt: skip
        tags = {WEIGHTS: weights.model_dump_json(), PROVENANCE: provenance.model_dump_json()}
        client.create_model_version("eagle", weights.source, tags=tags)
    client.set_registered_model_alias("eagle", "champion", "2")
    found = collect(store)
    assert set(found.results) == {ids["data-1"], ids["free"]}
    assert {one.name: len(one.objects) for one in found.holders} == {
        "models:/eagle/1": 4,
        "models:/eagle/2 @champion": 7,
    }


def test_leftovers_go_and_what_is_in_use_stays(store, project, tmp_path):
    home = project / ".manyeyes"
    for name in ("kfp/done", "work/recent", "locks"):
        (home / name).mkdir(parents=True)
    for name in ("work/old/state/step", "runs/old/kfp.log", "store/damaged/x", "work/recent/x"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    (home / "locks/left.lock").touch()
    month = time.time() - 31 * 24 * 3600
    for path in [*home.rglob("old"), *home.rglob("old/*"), *home.rglob("old/*/*")]:
        os.utime(path, (month, month))
    (tmp_path / "manyeyes-mine").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c",
         "import sys\nfrom manyeyes.runtime.locks import temporary\n"
         "with temporary() as f:\n print(f, flush=True)\n sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    scratch = Path(process.stdout.readline().strip()).parent
    assert scratch not in {left.path for left in garbage(store).leftovers}
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = collect(store)
    assert {left.path for left in found.leftovers} == {
        scratch, home / "kfp/done", home / "work/old", home / "runs/old", home / "store/damaged/x",
        home / "locks/left.lock",
    }  # fmt: skip
    assert not any(left.path.exists() for left in found.leftovers)
    assert (home / "work/recent/x").exists()
    assert (tmp_path / "manyeyes-mine").exists()
    assert garbage(store).leftovers == ()


def test_du_says_who_holds_what(store, project, capsys):
    exported(store, "a")
    exported(store, "b")
    made(store, "c")
    commit("a")
    assert main(["du", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lines = {(one["kind"], one["name"]): one for one in found["holders"]}
    assert set(lines) == {
        ("results", str(project / "runs/a")),
        ("results", str(project / "runs/b")),
        ("git", f"{project}: main"),
    }
    assert lines["results", str(project / "runs/a")]["alone"] == 0
    assert lines["results", str(project / "runs/b")]["alone"] > 80_000
    assert found["held_by_nobody"] > 80_000
    assert found["bytes"] > 240_000
    assert found["silent"] == []
    assert main(["du"]) == 0
    assert "Held by nobody: 8" in capsys.readouterr().out
    assert main(["gc"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-2].startswith("May go: 3 objects of 8")
    assert printed.splitlines()[-1] == ("Nothing was removed; 'manyeyes gc --apply' removes it.")


def test_a_pushed_dataset_is_held_by_its_name(store, project):
    folder = project / "data"
    write_artifact(folder, {"weights": b"x" * 1000})
    pushed = push(folder)
    assert garbage(store).objects == frozenset()
    assert os.listdir(project / ".manyeyes/locks") == []
    assert there(store, pushed.dir_id)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (44_000_000, "44.0 MB")]
)
def test_a_size_is_written_for_people(size, text):
    assert readable(size) == text
