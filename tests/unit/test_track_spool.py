"""The spool: every stage records to disk, whatever happens to it, and never fails through it."""

import json
import subprocess
import sys

import pytest

from manyeyes.artifact.manifest import Header, Manifest, write_manifest
from manyeyes.errors import Interrupted
from manyeyes.runtime.home import run_directory
from manyeyes.steps import Task
from manyeyes.tracking import StageRecord, curves
from manyeyes.tracking.pipeline import finish_pipeline, start_pipeline
from manyeyes.tracking.records import DatasetInput, StageRun, flatten, read_record
from manyeyes.tracking.spool import recording, spool_directory

pytestmark = pytest.mark.usefixtures("home")
RUN = StageRun(pipeline="eagle-1", stage="prealign", expert="clip", fingerprint="f" * 64)


def stored(run=RUN):
    return read_record(spool_directory(run.pipeline) / run.folder / "record.json")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("broken"), "FAILED"),
        (Interrupted("stopped"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_record_says_how_the_stage_ended(error, status):
    def stage():
        with recording(RUN):
            assert stored().status == "RUNNING"
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            stage()
    else:
        stage()
    assert (stored().status, stored().name) == (status, "prealign clip")
    assert stored().started <= stored().ended


def test_a_record_keeps_what_the_stage_says():
    data = DatasetInput(name="dataset", digest="d" * 64, source="sha256://d")
    run = StageRun("p", "sft", "f" * 64, tags={"revision": "abc"}, params={"seed": 7})
    with recording(run) as recorder:
        recorder.add_scores({"loss": 0.5})
        recorder.add_tags({"digest": "e" * 64})
        recorder.add_dataset(data)
    record = stored(run)
    assert record.params == {"seed": "7"}
    assert record.scores == {"loss": 0.5}
    assert record.datasets == (data,)
    assert record.tags == {
        "fingerprint": "f" * 64, "stage": "sft", "revision": "abc", "digest": "e" * 64,
    }  # fmt: skip


def test_a_resumed_stage_continues_its_record():
    with pytest.raises(Interrupted), recording(RUN):
        raise Interrupted("stopped")
    first = stored()
    with recording(RUN):
        pass
    assert (stored().attempts, stored().status) == (2, "FINISHED")
    assert (stored().started, stored().key) == (first.started, first.key)


def test_another_fingerprint_is_another_record():
    other = StageRun("eagle-1", "prealign", "0" * 64, expert="clip")
    for run in (RUN, other):
        with recording(run):
            pass
    assert [stored(run).attempts for run in (RUN, other)] == [1, 1]


def test_a_spool_that_cannot_be_written_is_a_note(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "file"))
    with recording(RUN) as recorder:
        start_pipeline("eagle-1", "eagle", {}, {})
        finish_pipeline("eagle-1", "FINISHED")
        reached = True
    assert reached
    assert recorder.notes == [
        f"the record in {recorder.directory} was not written: Not a directory"
    ]


def test_curves_are_kept_when_the_work_folder_goes(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    with recording(StageRun("p", "sft", "f" * 64, metrics_file=metrics)) as recorder:
        pass
    metrics.unlink()
    assert (recorder.directory / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_the_machine_is_sampled_and_counting_goes_on_after_a_resume():
    for _ in range(2):
        with recording(RUN, sample_seconds=60.0) as recorder:
            pass
    text = (recorder.directory / "system.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert rows[0]["system/process_memory_megabytes"] > 1
    assert set(rows[0]) == {
        "step", "time", "system/cpu_utilization_percentage", "system/process_cpu_percentage",
        "system/process_memory_megabytes", "system/system_memory_usage_percentage",
        "system/disk_usage_percentage", "system/disk_available_megabytes",
    }  # fmt: skip


def test_a_pipeline_run_that_continues_keeps_its_start():
    for _ in range(2):
        start_pipeline("eagle-1", "eagle", {"a": "b"}, {"seed": 1})
    finish_pipeline("eagle-1", "FINISHED")
    record = read_record(run_directory("eagle-1") / "track" / "pipeline.json")
    assert (record.attempts, record.status, record.name) == (2, "FINISHED", "eagle")


def an_input(name):
    return Manifest(
        kind="dataset", stage="prepare", name="prepare", recipe_slice="", fingerprint="",
        parents={}, code="", revision="", libraries={}, seed=0, details={"name": name}, format=1,
        files={},
    )  # fmt: skip


def test_the_runners_record_holds_slice_parents_and_result(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYEYES_RUN", "eagle-1")
    work = tmp_path / "work"
    (work / "measurements").mkdir(parents=True)
    (work / "measurements/metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    run = StageRecord.describe(Task("sft"), '{"seed":7,"section":{"steps":3}}', "f" * 64)
    with StageRecord.open(run) as record:
        parents = {"dataset": an_input("mine_v2"), "checkpoint": an_input("no name of its own")}
        record.parents(parents)
        header = Header(
            kind="report", stage="sft", name="sft", recipe_slice="a", fingerprint="f" * 64, parents={},
            code="c", revision="r", libraries={}, seed=0,
            details={"scores": {"charts": 61.5}, "steps": 3, "whole": True, "text": "no number"},
        )  # fmt: skip
        manifest = write_manifest(work, header)
        record.finish(work, manifest)
    kept = stored(StageRun("eagle-1", "sft", "f" * 64))
    assert kept.params == {"seed": "7", "section.steps": "3"}
    assert kept.scores == {"scores/charts": 61.5, "steps": 3.0}
    assert kept.tags["digest"] == manifest.digest
    assert kept.tags["parent.checkpoint"] == parents["checkpoint"].digest
    assert [(data.name, data.context) for data in kept.datasets] == [
        ("mine_v2", "training"),
        ("checkpoint", "parent"),
    ]
    assert (record.recorder.directory / "metrics.jsonl").exists()


def test_recording_imports_no_mlflow():
    code = "import sys, manyeyes.tracking, manyeyes.tracking.sync; print('mlflow' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "False\n"


@pytest.mark.parametrize(
    ("nested", "flat"),
    [
        ({}, {}),
        ({"a": {"b": {"c": 1}}}, {"a.b.c": "1"}),
        ({"rate": 1e-3, "name": "x", "off": None, "on": True},
         {"rate": "0.001", "name": "x", "off": "null", "on": "true"}),
        ({"list": [{"b": 2, "a": 1}]}, {"list": '[{"a": 1, "b": 2}]'}),
    ],
)  # fmt: skip
def test_parameters_are_flat_text(nested, flat):
    assert flatten(nested) == flat


@pytest.mark.parametrize(
    ("text", "after", "points"),
    [
        ('{"step": 1, "loss": 2.0, "elapsed": 3}\n', -1, [("loss", 1, 2.0, 103.0)]),
        ('{"step": 1, "loss": 2, "time": 7}\n', -1, [("loss", 1, 2.0, 7.0)]),
        ('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n', 1, [("loss", 2, 1.0, 100.0)]),
        # Written again after a resume: the later row stands.
        ('{"step": 1, "loss": 2}\n{"step": 1, "loss": 3}\n', -1, [("loss", 1, 3.0, 100.0)]),
        # A torn last line, a line that is no row, and values that are no numbers.
        ('{"step": 1, "loss": 2}\n{"step": 2, "lo', -1, [("loss", 1, 2.0, 100.0)]),
        ('[1]\n{"step": 1, "name": "x", "flag": true, "none": null}\n', -1, []),
        ('{"loss": 2}\n', -1, []),
        ('{"step": 1, "loss@train=": 2}\n', -1, [("loss_train_", 1, 2.0, 100.0)]),
    ],
)
def test_curves_read_whole_rows_after_a_step(tmp_path, text, after, points):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text, encoding="utf-8")
    found = curves.read(path, 100.0, after)
    assert [(point.key, point.step, point.value, point.time) for point in found] == points
