"""Whom a destination belongs to: nothing of a person's is lost, and a result of ours is replaced."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from store_kit import contents, write_artifact

from manyeyes.artifact.destination import (
    beside,
    claim_file,
    claim_files,
    claim_folder,
    claim_pointer,
    claim_run,
    free_place,
    put,
)
from manyeyes.artifact.manifest import UNFINISHED, Header, read_manifest, write_manifest
from manyeyes.artifact.marker import MARK, begin, finish, is_marked, mark, reserve
from manyeyes.cli import main
from manyeyes.errors import UserError
from manyeyes.runtime import writable
from manyeyes.runtime.locks import OWNER
from manyeyes.store import open_store
from tools.zoo.cards import is_zoo
from tools.zoo.cards import write_manifest as write_zoo_manifest

RECIPE = Path(__file__).parents[2] / "recipes/tiny/eagle-x5.yaml"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project folder in which somebody stands, with state and a store that have something."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / ".manyeyes"))
    for name in ("MANYEYES_STORE", "MANYEYES_CACHE"):
        monkeypatch.delenv(name, raising=False)
    write(".manyeyes/store/files/md5/ab/cd", "an object")
    write_artifact(tmp_path / "result", {"weights": b"1"})
    return tmp_path


def write(name, text="mine"):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def imported(folder):
    """Write a dataset that no recipe made."""
    write(f"{folder}/data", "pictures")
    header = Header(
        kind="dataset", stage="prepare", name="prepare", recipe_slice="", fingerprint="", parents={},
        code="", revision="", libraries={}, seed=0,
    )  # fmt: skip
    write_manifest(Path(folder), header)


def link(name, target):
    Path(name).symlink_to(target)


def loop():
    link("a", "b")
    link("b", "a")


def files_below(place):
    """Return every file, with what it holds, and every link, with where it leads."""
    links = {path: os.readlink(path) for path in place.rglob("*") if path.is_symlink()}
    return contents(place), links


ELSEWHERE = "give another folder with --out."
REFUSED = {
    "own files": (
        lambda: [write("docs/thesis.txt"), write("docs/.git/HEAD")], "docs",
        f"Cannot write to docs: it holds .git and is no result of manyeyes; {ELSEWHERE}",
    ),
    "a file beside a result": (
        lambda: write("result/notes.md"), "result",
        "Cannot write to result: it holds notes.md, which is no part of the checkpoint there; move "
        f"it away, or {ELSEWHERE}",
    ),
    "a link beside a result": (
        lambda: link("result/more", "/tmp"), "result",
        "Cannot write to result: it holds more, which is no part of the checkpoint there; move it "
        f"away, or {ELSEWHERE}",
    ),
    "a damaged manifest": (
        lambda: write("docs/manifest.json", "{"), "docs",
        f"Cannot write to docs: it holds manifest.json and is no result of manyeyes; {ELSEWHERE}",
    ),
    "somebody's manifest": (
        lambda: [write("docs/manifest.json", '{"name": "app"}'), write("docs/app.js")], "docs",
        f"Cannot write to docs: it holds app.js and is no result of manyeyes; {ELSEWHERE}",
    ),
    "a marker of somebody's": (
        lambda: [write(f"docs/{UNFINISHED}", "mine"), write("docs/a")], "docs",
        f"Cannot write to docs: it holds a and is no result of manyeyes; {ELSEWHERE}",
    ),
    "imported data": (
        lambda: imported("data/mine"), "data/mine",
        "data/mine exists already: it holds a dataset that no recipe can make again; remove it or "
        f"{ELSEWHERE}",
    ),
    "a file": (
        lambda: write("docs"), "docs",
        "Cannot write to docs: it is a file; give the path of a directory.",
    ),
    "below a file": (
        lambda: write("docs"), "docs/out",
        "Cannot write to docs/out: {place}/docs is not a folder; " + ELSEWHERE,
    ),
    "a pipe": (
        lambda: os.mkfifo("docs"), "docs",
        "Cannot write to docs: it is a file; give the path of a directory.",
    ),
    "the folder one is in": (
        lambda: None, ".",
        "Cannot write to .: it is the folder you are in, or one around it; " + ELSEWHERE,
    ),
    "the folder around it": (
        lambda: None, "..",
        "Cannot write to ..: it is the folder you are in, or one around it; " + ELSEWHERE,
    ),
    "the root": (
        lambda: None, "/",
        "Cannot write to /: it is the folder you are in, or one around it; " + ELSEWHERE,
    ),
    "a link to where one is": (
        lambda: link("here", "."), "here",
        "Cannot write to here: it is the folder you are in, or one around it; " + ELSEWHERE,
    ),
    "the state": (
        lambda: None, ".manyeyes",
        "Cannot write to .manyeyes: manyeyes keeps its state there ({place}/.manyeyes); "
        + ELSEWHERE,
    ),
    "the store": (
        lambda: None, ".manyeyes/store",
        "Cannot write to .manyeyes/store: manyeyes keeps its state there "
        "({place}/.manyeyes/store); " + ELSEWHERE,
    ),
    "within the store": (
        lambda: None, ".manyeyes/store/files/new",
        "Cannot write to .manyeyes/store/files/new: manyeyes keeps its state there "
        "({place}/.manyeyes/store); " + ELSEWHERE,
    ),
    "a link to the store": (
        lambda: link("s", ".manyeyes/store"), "s",
        "Cannot write to s: manyeyes keeps its state there ({place}/.manyeyes/store); " + ELSEWHERE,
    ),
    "a link in a circle": (
        loop, "a", "Cannot write to a: its symbolic link leads in a circle; " + ELSEWHERE,
    ),
    "a byte that is no UTF-8": (lambda: None, "l\udce9", "'l\\udce9' is not UTF-8: " + ELSEWHERE),
    "a zero byte": (lambda: None, "a\0b", "'a\\x00b' cannot be a path: " + ELSEWHERE),
    "too long": (
        lambda: None, "a" * 5000,
        f"Cannot write to {'a' * 100}... (File name too long); " + ELSEWHERE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_free_is_refused_in_one_sentence_and_stays(place, case):
    prepare, out, text = REFUSED[case]
    prepare()
    before = files_below(place)
    with pytest.raises(UserError) as caught:
        claim_folder(Path(out))
    assert str(caught.value) == text.format(place=place)
    assert files_below(place) == before


FREE = {
    "absent": lambda: None,
    "absent, with folders": lambda: None,
    "empty": lambda: Path("out").mkdir(),
    "a result": lambda: write_artifact(Path("out"), {"weights": b"old"}),
    "a damaged result": lambda: [
        write_artifact(Path("out"), {"weights": b"old", "more": b"x"}), Path("out/more").unlink(),
    ],
    "a signed result": lambda: [
        write_artifact(Path("out"), {"weights": b"old"}), write("out/model.sig"),
        write("out/manifest.json.asc"),
    ],
    "unfinished": lambda: [begin(Path("out")), write("out/part")],
    "a pointer": lambda: write(
        "out/pointer.json", '{"format": 1, "store": "s3://a/b", "dir_id": "x"}'
    ),
    "a link to a result": lambda: [
        write_artifact(Path("real"), {"weights": b"old"}), link("out", "real"),
    ],
    "a link to nothing": lambda: link("out", "real"),
}  # fmt: skip


@pytest.mark.parametrize("case", FREE)
def test_what_is_free_is_written_and_nothing_is_left_beside(place, case):
    FREE[case]()
    out = Path("deep/er/out") if case == "absent, with folders" else Path("out")
    with beside(out) as work:
        write_artifact(work, {"weights": b"new"})
        put(work, out)
    assert contents(out)["weights"] == b"new"
    assert sorted(contents(out)) == ["manifest.json", "weights"]
    assert out.is_symlink() == case.startswith("a link")
    assert list(place.rglob(".out.*")) == list(place.rglob(".real.*")) == []


INPUTS = {
    "the input": ("data", "data"),
    "around the input": ("set", "set/data"),
    "within the input": ("data/report", "data"),
    "the input through a link": ("alias", "data"),
    "the input by a link": ("data", "alias"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_an_input_is_never_written_to(place, case):
    out, given = INPUTS[case]
    write_artifact(Path("set/data") if "set" in out else Path("data"), {"rows": b"1"})
    if "alias" in (out, given):
        link("alias", "data")
    with pytest.raises(UserError) as caught:
        claim_folder(Path(out), inputs=[Path(given)])
    assert str(caught.value) == (
        f"Cannot write to {out}: {given}, which is read, would be lost; {ELSEWHERE}"
    )


def test_equal_content_may_be_written_over_imported_data(place):
    imported("data/mine")
    shutil.copytree("data/mine", "again")
    with beside(Path("data/mine")) as work:
        shutil.copytree("again", work, dirs_exist_ok=True)
        put(work, Path("data/mine"))
    assert contents(Path("data/mine")) == contents(Path("again"))


def test_what_a_kill_moved_away_comes_back(place):
    (place / ".result.killed").mkdir()
    (place / ".result.killed" / OWNER).touch()
    (place / "result").rename(place / ".result.killed/old-0")
    with pytest.raises(RuntimeError), beside(Path("result")):
        raise RuntimeError("this one fails too")
    assert contents(place / "result")["weights"] == b"1"
    assert not (place / ".result.killed").exists()


NEIGHBOURS = (
    ".out.old",
    ".out.unfinished",
    ".out.importing",
    ".out.mine",
    "out.refused",
    "out.old",
)


def test_neighbours_of_like_names_are_somebodys(place):
    for name in NEIGHBOURS:
        write(f"{name}/thesis.txt")
    with beside(Path("out")) as work:
        write_artifact(work, {"weights": b"new"})
        put(work, Path("out"))
    refused = free_place(Path("out.refused"))
    assert refused == Path("out.refused-2")
    assert all(contents(place / name) == {"thesis.txt": b"mine"} for name in NEIGHBOURS)


def test_refused_evidence_is_replaced_until_somebody_adds_to_it(place):
    write("out.refused/report.html")
    mark(Path("out.refused"))
    assert free_place(Path("out.refused")) == Path("out.refused")
    write("out.refused/report.html")
    mark(Path("out.refused"))
    write("out.refused/notes.md")
    assert not is_marked(Path("out.refused"))
    assert free_place(Path("out.refused")) == Path("out.refused-2")
    assert Path("out.refused/notes.md").read_text() == "mine"


def test_what_is_written_in_place_begins_and_ends_with_the_marker(place):
    begin(Path("zoo"))
    assert Path(f"zoo/{UNFINISHED}").read_text() == MARK
    finish(Path("zoo"))
    assert os.listdir("zoo") == []


def test_only_what_the_zoos_manifest_lists_makes_a_zoo(place):
    write("zoo/clip-tiny/model.safetensors")
    assert not is_zoo(Path("zoo"))
    write_zoo_manifest(Path("zoo"))
    assert is_zoo(Path("zoo"))
    write("zoo/clip-tiny/notes.md")
    assert not is_zoo(Path("zoo"))


FILES = {
    "somebody's": (lambda: write("out.yaml"), "out.yaml exists already: remove it or name another "
                   "file with -o."),
    "a folder": (lambda: Path("out.yaml").mkdir(),
                 "Cannot write out.yaml: it is a folder; give the path of a file."),
    "what is read": (lambda: link("out.yaml", "in.yaml"),
                     "Cannot write out.yaml: it is in.yaml, which is read; choose another."),
    "a pipe": (lambda: os.mkfifo("out.yaml"),
               "out.yaml exists already: remove it or name another file with -o."),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_somebodys_is_not_written(place, case):
    prepare, text = FILES[case]
    write("in.yaml")
    prepare()
    with pytest.raises(UserError) as caught:
        claim_file(Path("out.yaml"), inputs=[Path("in.yaml")], option="-o")
    assert str(caught.value) == text


def test_a_link_is_followed_to_its_file(place):
    link("out.yaml", "real.yaml")
    assert claim_file(Path("out.yaml")) == place / "real.yaml"


def test_a_pointer_of_another_folder_is_not_replaced(place):
    write("sft.dvc", "outs:\n- md5: a\n  path: other\n")
    with pytest.raises(UserError) as caught:
        claim_pointer(Path("sft"))
    assert str(caught.value) == "sft.dvc exists already: remove it or name another file with --out."
    write("sft.dvc", "outs:\n- md5: a\n  path: sft\n")
    assert claim_pointer(Path("sft")) == place / "sft.dvc"


def test_a_run_leaves_alone_what_is_beside_its_results(place):
    write("mine/notes.md")
    write_artifact(Path("sft"), {"weights": b"old"})
    claim_run(Path(), [Path("sft"), Path("eval")], writable=True)
    write("eval/my_eval.py")
    with pytest.raises(UserError) as caught:
        claim_run(Path(), [Path("sft"), Path("eval")], writable=True)
    assert str(caught.value) == (
        f"Cannot write to eval: it holds my_eval.py and is no result of manyeyes; {ELSEWHERE}"
    )


VERBS = {
    "run": ("run", RECIPE, "--out", "mine"),
    "prepare": ("prepare", RECIPE, "--out", "mine/prepare"),
    "data starter": ("data", "starter", "--out", "mine/prepare"),
    "import-weights": ("import-weights", "w.safetensors", "--out", "mine/prepare"),
    "compile": ("compile", RECIPE, "-o", "mine/prepare/thesis.yaml"),
    "keys": ("keys", RECIPE, "--out", "mine/prepare/thesis.yaml"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_asks_whom_its_destination_belongs_to(place, verb, capsys):
    write("mine/prepare/thesis.yaml")
    before = contents(place / "mine")
    assert main([str(part) for part in VERBS[verb]]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    assert "mine/prepare" in text
    assert contents(place / "mine") == before
    assert [path.name for path in (place / "mine").iterdir()] == ["prepare"]


UNWRITABLE = {
    "/proc/x": "/proc is not writable; choose another folder with {option}.",
    "/proc/x/y": "/proc is not writable; choose another folder with {option}.",
    "/sys/x": "/sys is not writable; choose another folder with {option}.",
    "/dev/null/x": "/dev/null is not a folder; give another folder with {option}.",
    "file/x": "{place}/file is not a folder; give another folder with {option}.",
}
"""Where nothing can be written, whoever one is, to the second half of the sentence."""
DIGESTS = ".manyeyes/digests/"
"""Remembered of files that were read."""
WRITERS = {
    "run": ("run", RECIPE, "--out", "{out}"),
    "prepare": ("prepare", RECIPE, "--out", "{out}"),
    "validate": ("validate", RECIPE, "--dataset", "d", "--out", "{out}"),
    "register": ("register", RECIPE, "--checkpoint", "c", "--report", "r", "--out", "{out}"),
    "data starter": ("data", "starter", "--out", "{out}"),
    "data import": ("data", "import", "c.json", "--images", ".", "--licence", "CC0-1.0",
                    "--out", "{out}"),
    "import-weights": ("import-weights", "w.safetensors", "--out", "{out}"),
    "export-projector": ("export-projector", "c", "-o", "{out}.bin"),
    "compile": ("compile", RECIPE, "-o", "{out}.yaml"),
    "keys": ("keys", RECIPE, "--out", "{out}"),
    "pull": ("data", "pull", "{digest}", "--out", "{out}"),
}  # fmt: skip


@pytest.mark.parametrize("out", UNWRITABLE)
@pytest.mark.parametrize("verb", WRITERS)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(place, verb, out, capsys):
    write("file")
    write("c.json", "[]")
    store = open_store()
    manifest = read_manifest(place / "result")
    store.remember("", store.put(place / "result", manifest), manifest.digest)
    before = contents(place)
    words = [str(word).format(out=out, digest=manifest.digest) for word in WRITERS[verb]]
    named = next(word for word in words if word.startswith(out))
    named += "/prepare" if verb == "run" else ""
    assert main(words) == 2
    option = "-o" if verb == "compile" else "--out"
    text = UNWRITABLE[out].format(place=place, option=option)
    assert capsys.readouterr().err == f"Cannot write to {named}: {text}\n"
    after = {name: one for name, one in contents(place).items() if DIGESTS not in name}
    assert after == before


def test_a_folder_that_only_others_may_write_is_refused(place, monkeypatch):
    def refuse(folder, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", folder)

    Path("theirs").mkdir()
    monkeypatch.setattr(writable, "scratch", refuse)
    with pytest.raises(UserError) as caught:
        claim_folder(Path("theirs/out"))
    assert str(caught.value) == (
        f"Cannot write to theirs/out: {place}/theirs is not writable; choose another folder with "
        "--out."
    )


def test_a_disk_that_is_mounted_there_is_refused_before(place, monkeypatch):
    Path("disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(UserError) as caught:
        claim_folder(Path("disk"))
    assert str(caught.value) == (
        "Cannot put a folder in the place of disk (Device or resource busy): name one within it, "
        f"or {ELSEWHERE}"
    )


def test_files_are_written_beside_those_of_others_and_over_none(place):
    write("keys/notes.md")
    claim_files(Path("keys"), ["sft.json"], lambda text: text == "ours")
    write("keys/sft.json", "ours")
    claim_files(Path("keys"), ["sft.json"], lambda text: text == "ours")
    write("keys/sft.json", "mine")
    with pytest.raises(UserError) as caught:
        claim_files(Path("keys"), ["sft.json"], lambda text: text == "ours")
    assert str(caught.value) == (
        f"Cannot write to keys: the sft.json there is no result of manyeyes; {ELSEWHERE}"
    )


def test_a_reserved_folder_is_ours_until_somebody_adds_to_it(place):
    reserve(Path("table"), ["table.md"])
    write("table/table.md")
    assert claim_folder(Path("table")) == place / "table"
    reserve(Path("table"), ["recipes/a.yaml"])
    assert claim_folder(Path("table")) == place / "table"
    write("table/notes.md")
    with pytest.raises(UserError) as caught:
        claim_folder(Path("table"))
    assert str(caught.value) == (
        "Cannot write to table: it holds notes.md and is no result of manyeyes; " + ELSEWHERE
    )
