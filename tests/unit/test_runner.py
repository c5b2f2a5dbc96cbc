"""What a kill leaves of a stage costs the next attempt nothing, and is no part of its result."""

from functools import partial

import pytest

from manyeyes.artifact.manifest import Header, read_manifest, write_manifest
from manyeyes.pipeline import runner, stages

SLICE = '{"seed":1,"validate":{}}'


@pytest.fixture
def once(tmp_path, monkeypatch):
    """A function that runs a stage, whose work is given, on a small dataset."""
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    data = tmp_path / "dataset"
    data.mkdir()
    (data / "data").write_bytes(b"bytes")
    header = Header(
        kind="dataset", stage="prepare", name="prepare", recipe_slice="s", fingerprint="f" * 64,
        parents={}, code="c", revision="r", libraries={}, seed=1,
    )  # fmt: skip
    write_manifest(data, header)

    def run(work):
        def call(stage, recipe_slice, context):
            work(context.out)
            return {}

        monkeypatch.setattr(stages, "ready", partial(partial, call))
        return runner.run_stage("validate", SLICE, inputs={"dataset": data}, out=tmp_path / "out")

    return run


class Killed(BaseException):
    """Ends a stage as no error of its own would."""


def finish(out):
    (out / "report.json").write_text("{}")
    (out / "state").mkdir(exist_ok=True)
    (out / "state" / "step-8").write_text("all that was trained")


def test_half_a_write_is_not_listed_with_the_result(once, tmp_path):
    def killed(out):
        (out / "deep").mkdir()
        (out / "deep" / ".report.json.123.tmp").write_text("{")
        raise Killed

    with pytest.raises(Killed):
        once(killed)
    assert sorted(once(finish).files) == ["report.json"]


def test_states_stay_until_the_manifest_stands(once, tmp_path, monkeypatch):
    """Hashing a large checkpoint takes minutes, and a kill then must not cost the training."""

    def killed(work, header):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_manifest", killed)
        with pytest.raises(Killed):
            once(finish)
    seen = []

    def again(out):
        seen.append((out / "state" / "step-8").read_text())
        finish(out)

    assert sorted(once(again).files) == ["report.json"]
    assert seen == ["all that was trained"]
    assert list((tmp_path / "home" / "work").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "report.json",
    ]


def test_what_a_kill_left_of_a_result_that_is_kept_is_removed(once, tmp_path):
    manifest = once(finish)
    left = tmp_path / "home" / "work" / manifest.fingerprint[:32]
    left.mkdir()
    (left / "report.json").write_text("{}")

    def never(out):
        raise AssertionError("the stage ran again")

    assert once(never).digest == manifest.digest
    assert not left.exists()
    assert read_manifest(tmp_path / "out").digest == manifest.digest
