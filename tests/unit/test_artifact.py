import os

import pytest

from manyeyes.artifact.manifest import (
    Header,
    atomic_write_bytes,
    atomic_write_text,
    open_artifact,
    read_manifest,
    write_manifest,
)
from manyeyes.errors import UserError


def header(**changes):
    fields = {
        "kind": "checkpoint",
        "stage": "sft",
        "name": "sft",
        "recipe_slice": "s",
        "fingerprint": "f" * 64,
        "parents": {},
        "code": "c",
        "revision": "r",
        "libraries": {},
        "seed": 1,
    }
    return Header(**{**fields, **changes})


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "sft"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "sub/notes.txt").write_text("notes")
    write_manifest(folder, header())
    return folder


def test_a_finished_artifact_opens_with_every_file_listed(artifact):
    manifest = open_artifact(artifact, "checkpoint")
    assert sorted(manifest.files) == ["sub/notes.txt", "weights.safetensors"]
    assert manifest.size == 12


def damage(folder, how):
    match how:
        case "no folder":
            os.rename(folder, folder.with_name("moved"))
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "bad manifest":
            (folder / "manifest.json").write_text("{")
        case "missing file":
            (folder / "weights.safetensors").unlink()
        case "truncated file":
            (folder / "weights.safetensors").write_bytes(b"weig")
        case "other bytes":
            (folder / "weights.safetensors").write_bytes(b"WEIGHTS")


ADVICE = "fetch the artifact again or run its stage again."


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("no folder", "No artifact at {at}: there is no such directory."),
        (
            "no manifest",
            "{at} is not a finished artifact: it has no manifest.json. "
            "Run the stage that makes it again; it continues where it stopped.",
        ),
        (
            "bad manifest",
            "{at}/manifest.json is damaged: it is not a manifest of format 1; fetch the artifact "
            "again or run its stage again.",
        ),
        (
            "missing file",
            "{at}/weights.safetensors is missing, though the manifest lists it; " + ADVICE,
        ),
        (
            "truncated file",
            "{at}/weights.safetensors has 4 bytes, but the manifest says 7; " + ADVICE,
        ),
        (
            "other bytes",
            "{at}/weights.safetensors does not match the sha256 in the manifest; " + ADVICE,
        ),
    ],
)
def test_a_damaged_artifact_is_refused_in_one_sentence(artifact, how, expected):
    damage(artifact, how)
    with pytest.raises(UserError) as error:
        open_artifact(artifact, "checkpoint")
    assert str(error.value) == expected.replace("{at}", str(artifact))


def test_the_wrong_kind_is_refused(artifact):
    with pytest.raises(UserError) as error:
        open_artifact(artifact, "dataset")
    assert (
        str(error.value) == f"{artifact} holds a checkpoint (made by sft), but a dataset is needed."
    )


def test_measurements_are_checked_but_do_not_change_the_content_digest(tmp_path):
    digests = []
    for seconds in ("1", "2"):
        folder = tmp_path / seconds
        (folder / "measurements").mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"weights")
        (folder / "measurements/metrics.jsonl").write_text(seconds)
        manifest = write_manifest(folder, header())
        assert "measurements/metrics.jsonl" in manifest.files
        digests.append(manifest.digest)
    assert digests[0] == digests[1]


def test_the_digest_follows_the_content_not_the_circumstances(tmp_path):
    def digest(name, content, **changes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(content)
        return write_manifest(folder, header(**changes)).digest

    base = digest("a", b"weights")
    assert digest("b", b"weights", revision="other", fingerprint="e" * 64) == base
    assert digest("c", b"other", revision="r") != base
    assert digest("d", b"weights", kind="report") != base


def test_a_failed_atomic_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    atomic_write_text(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write_bytes(path, b"new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_manifest_of_another_format_names_both(artifact):
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(UserError) as error:
        read_manifest(artifact)
    assert str(error.value) == (
        f"{path} has format 9, but this manyeyes reads 1; use the version that wrote it."
    )
