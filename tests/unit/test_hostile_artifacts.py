"""A received artifact is hostile: its strings are no paths, its files are listed, nothing hangs."""

import hashlib
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from store_kit import contents, md5, put, write_artifact

from manyeyes.artifact.files import HISTORY
from manyeyes.artifact.lineage import read_history
from manyeyes.artifact.manifest import FileEntry, Header, open_artifact
from manyeyes.cli import main
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.images import BadPictureError
from manyeyes.data.dataset.sample import ImageRef
from manyeyes.data.dataset.shards import LocalShards, open_shards
from manyeyes.errors import UserError
from manyeyes.model.weights.loading import find_safetensors
from manyeyes.runtime.json_files import read_json
from manyeyes.runtime.plain_files import NotPlainError, open_plain, read_plain
from manyeyes.store import DamagedObjectError, Store, object_key
from manyeyes.store.keeping import StateRecord
from manyeyes.store.layout import digest_key, index_key, name_key
from manyeyes.store.pointer import Pointer
from manyeyes.store.ranges import RemoteFile, RemoteFiles
from manyeyes.store.settings import is_named, open_named

OUTSIDE = (
    "../../../precious.txt", "..", "/etc/passwd", "a" * 31, "A" * 32, "a" * 33, "", "g" * 32,
    "a" * 32 + "\n", "a" * 5000, "aa/bb", "a" * 32 + ".dir.dir",
)  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / ".manyeyes"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("MANYEYES_STORE", "MANYEYES_SHARDS", "MANYEYES_CACHE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "precious.txt").write_text("mine")
    return tmp_path


def header(**changes):
    values = {
        "kind": "dataset", "stage": "prepare", "name": "prepare", "recipe_slice": "",
        "fingerprint": "", "parents": {}, "code": "", "revision": "", "libraries": {}, "seed": 0,
    }  # fmt: skip
    return {**values, **changes}


def pointer(**changes):
    values = {
        "store": "s3://a/b", "dir_id": "a" * 32 + ".dir", "kind": "dataset", "stage": "prepare",
        "name": "prepare", "digest": "d" * 64, "fingerprint": "f" * 64, "size": 1,
    }  # fmt: skip
    return {**values, **changes}


@pytest.mark.parametrize("text", OUTSIDE)
def test_what_is_no_digest_never_becomes_a_part_of_a_path(text):
    for key in (object_key, index_key, digest_key):
        with pytest.raises(UserError, match="what it comes from was changed or damaged"):
            key(text)
    entry = {"size": 1, "sha256": "0" * 64, "md5": "0" * 32}
    with pytest.raises(ValueError, match="validation error"):
        FileEntry(**{**entry, "md5": text})
    with pytest.raises(ValueError, match="validation error"):
        FileEntry(**{**entry, "sha256": text})
    with pytest.raises(ValueError, match="validation error"):
        RemoteFile(md5=text, size=1)
    for field in ("dir_id", "digest"):
        with pytest.raises(ValueError, match="validation error"):
            Pointer(**pointer(**{field: text}))
    with pytest.raises(ValueError, match="validation error"):
        Header(**header(parents={"dataset": text}))
    if text:
        with pytest.raises(ValueError, match="validation error"):
            Header(**header(fingerprint=text))


@pytest.mark.parametrize("text", ["../x", "a/b", "", "..", "a\0", "é", "a" * 101, ".hidden"])
def test_names_of_stages_and_experts_are_parts_of_file_names(text):
    for field in ("stage", "name"):
        with pytest.raises(ValueError, match="validation error"):
            Header(**header(**{field: text}))


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a\0b", "a" * 300, "./a", "a//b"])
def test_paths_of_records_stay_inside(place, name):
    entry = FileEntry(size=1, sha256="0" * 64, md5="0" * 32)
    with pytest.raises(ValueError, match="validation error"):
        StateRecord(step=1, files={name: entry})
    with pytest.raises(ValueError, match="validation error"):
        RemoteFiles(store="s3://a/b", files={name: RemoteFile(md5="0" * 32, size=1)})


def test_names_of_datasets_are_no_paths():
    with pytest.raises(UserError) as caught:
        name_key("../../x")
    assert str(caught.value) == (
        "'../../x' is not the name of a dataset: what it comes from was changed or damaged."
    )


def test_a_pointer_moves_nothing(place, capsys):
    Path("in").mkdir()
    Path("in/pointer.json").write_text(
        json.dumps({"format": 1, **pointer(dir_id="../../../precious.txt", store="/tmp")})
    )
    assert main(["data", "pull", "in/pointer.json"]) == 2
    assert capsys.readouterr().err == (
        "in/pointer.json is not a pointer into the content store; run the step that wrote it "
        "again.\n"
    )
    assert Path("precious.txt").read_text() == "mine"


def test_a_list_of_a_shared_store_moves_nothing(place):
    store = Store(place / "shared/store")
    rows = [{"md5": "../../../../precious.txt", "relpath": "manifest.json"}]
    data = json.dumps(rows).encode()
    dir_id = f"{md5(data)}.dir"
    store.backend.write(object_key(dir_id), data)
    with pytest.raises(DamagedObjectError):
        store.checkout(dir_id, place / "out")
    with pytest.raises(ValueError, match="leads out of the store"):
        store.backend.set_aside("../../../precious.txt")
    assert Path("precious.txt").read_text() == "mine"
    assert not Path("out").exists()


def test_a_manifest_writes_nothing_outside(place, capsys):
    write_artifact(Path("data"), {"rows": b"1"})
    path = Path("data/manifest.json")
    manifest = {**json.loads(path.read_text()), "fingerprint": "../../../..OUTSIDE/PWN"}
    path.write_text(json.dumps(manifest))
    assert main(["data", "push", "data"]) == 2
    assert capsys.readouterr().err == (
        "data/manifest.json is damaged: it is not a manifest of format 1; fetch the artifact again "
        "or run its stage again.\n"
    )
    assert not Path(".manyeyes").exists()


def edit(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def listed(name):
    entry = {"size": 1, "sha256": "0" * 64, "md5": "0" * 32}
    return lambda at: edit(at / "manifest.json", lambda found: found["files"].update({name: entry}))


def in_place_of(name, make):
    def change(at):
        (at / name).unlink()
        make(at / name)

    return change


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path.relative_to(Path.cwd())))


ADVICE = "fetch the artifact again or run its stage again."
DAMAGED = "{at}/manifest.json is damaged: it is not a manifest of format 1; " + ADVICE
LISTS = "{at}/manifest.json was changed: it lists %s, which lies outside; " + ADVICE
CANNOT = "Cannot read {at}/%s (it is %s, not a plain file); " + ADVICE
UNLISTED = "{at} holds %s, which its manifest.json does not list: take it out, or fetch the artifact again."
HOSTILE = {
    "a zero byte": (listed("a\0b"), LISTS % "'a\\x00b'"),
    "5,000 letters": (listed("a" * 5000), LISTS % repr("a" * 100 + "...")),
    "a name outside": (listed("../x"), LISTS % "'../x'"),
    "an absolute name": (listed("/x"), LISTS % "'/x'"),
    "a name twice": (listed("./rows"), LISTS % "'./rows'"),
    "a listed remote.json": (listed("remote.json"), LISTS % "'remote.json'"),
    "a listed pointer": (listed("pointer.json"), LISTS % "'pointer.json'"),
    "deep JSON": (lambda at: (at / "manifest.json").write_text("[" * 100_000), DAMAGED),
    "a list": (lambda at: (at / "manifest.json").write_text("[]"), DAMAGED),
    "a huge number": (lambda at: (at / "manifest.json").write_text("1" * 5000), DAMAGED),
    "a manifest that is a pipe": (
        in_place_of("manifest.json", os.mkfifo), CANNOT % ("manifest.json", "a named pipe"),
    ),
    "a manifest that never ends": (
        in_place_of("manifest.json", lambda path: path.symlink_to("/dev/zero")),
        CANNOT % ("manifest.json", "a device"),
    ),
    "a manifest that is a folder": (
        in_place_of("manifest.json", Path.mkdir),
        "Cannot read {at}/manifest.json (it is a folder); " + ADVICE,
    ),
    "a file that is a pipe": (in_place_of("rows", os.mkfifo), CANNOT % ("rows", "a named pipe")),
    "a file that is a socket": (in_place_of("rows", make_socket), CANNOT % ("rows", "a socket")),
    "a file that is a device": (
        in_place_of("rows", lambda path: path.symlink_to("/dev/zero")),
        CANNOT % ("rows", "a device"),
    ),
    "a file of the kernel's": (
        in_place_of("rows", lambda path: path.symlink_to("/proc/self/environ")),
        CANNOT % ("rows", "a view of the kernel's"),
    ),
    "a file that is a folder": (
        in_place_of("rows", Path.mkdir), "Cannot read {at}/rows (it is a folder); " + ADVICE,
    ),
    "a file more": (lambda at: (at / "added_tokens.json").write_text("{}"),
                    UNLISTED % "added_tokens.json"),
    "a file more within": (
        lambda at: [(at / "shards").mkdir(), (at / "shards/more.tar").write_text("")],
        UNLISTED % "shards/more.tar",
    ),
    "where its files are": (
        lambda at: (at / "remote.json").write_text("{}"), UNLISTED % "remote.json",
    ),
    "a link to a file": (
        lambda at: (at / "chat_template.jinja").symlink_to("/etc/passwd"),
        UNLISTED % "chat_template.jinja",
    ),
    "a link to a folder": (lambda at: (at / "more").symlink_to("/etc"), UNLISTED % "more"),
    "a link to nothing": (lambda at: (at / "more").symlink_to("nowhere"), UNLISTED % "more"),
    "a pipe more": (lambda at: os.mkfifo(at / "more"), UNLISTED % "more"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_artifact_is_refused_in_one_sentence(place, case):
    change, text = HOSTILE[case]
    write_artifact(Path("d"), {"rows": b"1", "other": b"2"})
    change(place / "d")
    with pytest.raises(UserError) as caught:
        open_artifact(Path("d"), "checkpoint")
    assert str(caught.value) == text.format(at="d")


@pytest.mark.parametrize("name", ["model.sig", "signature", "signature.json", "manifest.json.asc"])
def test_a_signature_is_no_stranger(place, name):
    write_artifact(Path("d"), {"rows": b"1"})
    (place / "d" / name).write_text("signed")
    assert list(open_artifact(Path("d"), "checkpoint").files) == ["rows"]


def test_what_a_stored_manifest_does_not_list_is_not_taken_out(place):
    store = Store(place / "shared/store")
    dir_id = put(store, place / "made", {"rows": b"1"})
    rows = json.loads(store.backend.read(object_key(dir_id)))
    more = json.dumps([*rows, {"md5": rows[0]["md5"], "relpath": "added_tokens.json"}]).encode()
    store.backend.write(object_key(f"{md5(more)}.dir"), more)
    with pytest.raises(DamagedObjectError) as caught:
        store.checkout(f"{md5(more)}.dir", place / "out")
    assert str(caught.value) == (
        "The stored directory has added_tokens.json, which its manifest.json does not list; push "
        "the artifact again."
    )
    assert not Path("out").exists()


ODD = {
    "a pipe": (os.mkfifo, "it is a named pipe, not a plain file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a plain file"),
    "the kernel's": (
        lambda path: path.symlink_to("/proc/cpuinfo"),
        "it is a view of the kernel's, not a plain file",
    ),
    "a socket": (make_socket, "it is a socket, not a plain file"),
}  # fmt: skip
READERS = {
    "recipe": (
        ("check", "x"), "x: Cannot read the recipe x ({odd}); give the path of a .yaml file.",
    ),
    "conversations": (
        ("data", "import", "x", "--images", ".", "--licence", "CC0-1.0", "--out", "o"),
        "Cannot read x: {odd}; check the path.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_refused_before_a_byte_is_read(place, kind):
    make, reason = ODD[kind]
    make(place / "x")
    for read in (open_plain, read_plain, read_json):
        with pytest.raises(NotPlainError) as caught:
            read(place / "x")
        assert caught.value.strerror == reason


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_no_verb_waits_for_what_is_no_file(place, capsys, reader, kind):
    make, reason = ODD[kind]
    make(place / "x")
    command, text = READERS[reader]
    assert main(list(command)) == 2
    said = capsys.readouterr()
    assert (said.out + said.err).strip().splitlines()[-1].removeprefix("x: ") == (
        text.format(odd=reason).removeprefix("x: ")
    )


def test_weights_that_are_a_pipe_are_refused(place, capsys):
    os.mkfifo("model.safetensors")
    assert main(["import-weights", "model.safetensors", "--out", "o", "--as", "clip-tiny"]) == 2
    assert capsys.readouterr().err == (
        "model.safetensors is not a whole safetensors file (it is a named pipe, not a plain file): "
        "copy it again.\n"
    )


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ({"weight_map": {"a": "../x.safetensors"}},
         "names '../x.safetensors', which lies elsewhere: take it out."),
        ({"weight_map": {"a": "/x.safetensors"}},
         "names '/x.safetensors', which lies elsewhere: take it out."),
        ({"weight_map": {"a": ".."}}, "names '..', which lies elsewhere: take it out."),
        ([], "is not an index of shards: it has no table weight_map."),
    ],
)  # fmt: skip
def test_an_index_of_weights_stays_in_its_folder(place, index, text):
    path = place / "w/model.safetensors.index.json"
    path.parent.mkdir()
    path.write_text(json.dumps(index))
    with pytest.raises(UserError) as caught:
        find_safetensors(str(path.parent))
    assert str(caught.value) == f"{path} {text}"


@pytest.mark.parametrize("offset", [0, 2, 100, 2**62])
@pytest.mark.parametrize("size", [3, 2**40, 2**62])
def test_sizes_in_an_index_cost_no_memory(place, size, offset):
    (place / "shards").mkdir()
    (place / "shards/images-00000.tar").write_bytes(b"abc")
    ref = ImageRef("a", "images-00000.tar", offset, size, hashlib.sha256(b"abc").hexdigest(), 1, 1)
    assert LocalShards(place).read(ref) == b"abc"[offset:]
    dataset = Dataset(place)
    if (size, offset) == (3, 0):
        assert dataset.read_bytes(ref) == b"abc"
        return
    with pytest.raises(BadPictureError):
        dataset.read_bytes(ref)


def test_a_shard_that_is_a_pipe_is_refused(place):
    (place / "shards").mkdir()
    os.mkfifo(place / "shards/images-00000.tar")
    ref = ImageRef("a", "images-00000.tar", 0, 3, "0" * 64, 1, 1)
    with pytest.raises(UserError) as caught:
        LocalShards(place).read(ref)
    assert str(caught.value) == (
        f"{place}/shards/images-00000.tar: the shard cannot be opened (it is a named pipe, not a "
        "plain file); fetch or make the dataset again."
    )


@pytest.mark.parametrize("shards", ["local", "remote"])
def test_a_remote_json_of_a_stranger_decides_nothing(place, monkeypatch, shards):
    monkeypatch.setenv("MANYEYES_SHARDS", shards)
    RemoteFiles(store="s3://evil/store", files={}).write(place)
    assert isinstance(open_shards(place), LocalShards)


def test_only_stores_that_the_user_names_are_asked(place, monkeypatch):
    with pytest.raises(UserError) as caught:
        open_named("s3://evil/store")
    assert str(caught.value) == (
        "The pointer leads to the content store 's3://evil/store', which your configuration does "
        "not name: set MANYEYES_STORE=s3://evil/store if you trust it, or add it with 'dvc remote "
        "add'."
    )
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(
        "[core]\n    remote = team\n['remote \"team\"']\n    url = s3://team/x\n"
    )
    assert is_named("s3://team/x/")
    assert not is_named("s3://team/y")
    Path("user").mkdir()
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(place / "user"))
    Path("user/config").write_text("['remote \"mine\"']\n    url = s3://mine/z\n")
    assert is_named("s3://mine/z")
    assert is_named("s3://team/x")
    Path("user/config").unlink()
    os.mkfifo("user/config")
    assert not is_named("s3://mine/z")
    monkeypatch.setenv("MANYEYES_STORE", "s3://own/store")
    assert is_named("s3://own/store")


def test_a_history_that_is_none_is_one_sentence(place):
    (place / HISTORY).mkdir(parents=True)
    (place / HISTORY / "sft.json").write_text('{"stage": "../../x"}')
    with pytest.raises(UserError) as caught:
        read_history(place)
    assert str(caught.value) == (
        f"{place}/{HISTORY}/sft.json does not describe a stage: fetch the artifact again or run "
        "its stage again."
    )


def test_prepare_takes_only_what_a_datasets_manifest_lists(place):
    from manyeyes.pipeline.stages.prepare import _link_dataset

    write_artifact(Path("made"), {"rows": b"1"})
    shutil.copytree("made", "signed")
    Path("signed/model.sig").write_text("signed")
    edit(Path("signed/manifest.json"), lambda found: found.update(kind="dataset"))
    _link_dataset(Path("signed"), Path("out"))
    assert contents(Path("out")) == {"rows": b"1"}
