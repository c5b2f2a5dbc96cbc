"""Sending the spool: the whole tree, exactly once, whatever was down or killed before."""

import json

import pytest

from manyeyes.errors import Interrupted
from manyeyes.track.records import DatasetInput, Process, StageRun, read_record
from manyeyes.track.spool import finish_pipeline, recording, start_pipeline
from manyeyes.track.store import experiment_id, locate, open_store
from manyeyes.track.sync import run_of, sync

pytestmark = pytest.mark.usefixtures("home")
DATA = DatasetInput(name="dataset", digest="d" * 64, source="sha256://d", context="training")


@pytest.fixture
def curves_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1 / step, "elapsed": float(step)} for step in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def stage(name, expert="", curves_file=None, pipeline="eagle-1"):
    return StageRun(
        pipeline, name, f"{name}{expert}".ljust(64, "f"), expert=expert,
        params={"seed": 7}, datasets=(DATA,), metrics_file=curves_file,
    )  # fmt: skip


def whole_pipeline(curves_file):
    start_pipeline("eagle-1", "eagle", {"recipe": "r" * 64}, {"seed": 7})
    for expert in ("clip", "sam"):
        with recording(stage("prealign", expert, curves_file)):
            pass
    with recording(stage("sft", curves_file=curves_file)) as recorder:
        recorder.add_scores({"average": 61.5})
    finish_pipeline("eagle-1", "FINISHED")


def stored_runs():
    """Return what the store has, by run name."""
    client = open_store()
    runs = client.search_runs([experiment_id(client, locate())])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return client, {run.info.run_name: run for run in runs}


def losses(client, run):
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]


def test_a_pipeline_run_becomes_a_parent_with_a_child_per_stage_and_expert(curves_file):
    whole_pipeline(curves_file)
    report = sync()
    assert (report.runs, report.waiting, report.notes) == (
        ["eagle", "prealign clip", "prealign sam", "sft"], 0, [],
    )  # fmt: skip
    client, runs = stored_runs()
    parent = runs.pop("eagle")
    assert set(runs) == {"prealign clip", "prealign sam", "sft"}
    assert "mlflow.parentRunId" not in parent.data.tags
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.info.start_time <= run.info.end_time
        assert run.data.params == {"seed": "7"}
    sft = runs["sft"]
    assert losses(client, sft) == [(step, 1 / step) for step in range(1, 6)]
    assert sft.data.metrics["average"] == 61.5
    assert "system/process_memory_megabytes" in sft.data.metrics
    (data,) = sft.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("dataset", "d" * 36)
    assert {tag.key: tag.value for tag in data.tags} == {
        "mlflow.data.context": "training", "digest": "d" * 64,
    }  # fmt: skip


def test_a_dead_server_costs_a_note_and_the_records_are_sent_later_once(curves_file, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    whole_pipeline(curves_file)
    report = sync()
    assert (report.runs, report.waiting) == ([], 3)
    assert report.notes == [
        "MLflow at http://127.0.0.1:9 did not take the records ([Errno 111] Connection refused); "
        "they are kept and sent later."
    ]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync("eagle-1").waiting == 0
    client, runs = stored_runs()
    assert len(losses(client, runs["sft"])) == 5
    again = sync()
    assert (again.runs, again.num_metrics) == ([], 0)
    assert len(stored_runs()[1]) == 4


def test_a_server_that_goes_in_the_middle_gets_the_rest_when_it_is_back(tmp_path, monkeypatch):
    """Two parts of three of a long curve arrive, then nothing; in the end each value is there."""
    from mlflow import MlflowClient

    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1 / step, "elapsed": float(step)} for step in range(1, 2501)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with recording(stage("sft", curves_file=path)):
        pass
    log, num_metrics = MlflowClient.log_batch, [0]

    def gone(self, *arguments, **options):
        if num_metrics[0] >= 2000:
            raise ConnectionError("Connection refused")
        num_metrics[0] += len(options.get("metrics", ()))
        return log(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", gone)
        report = sync()
    assert report.waiting == 1
    assert report.notes == [
        f"MLflow at {locate().shown} did not take the records (Connection refused); "
        "they are kept and sent later."
    ]
    report = sync()
    assert (report.waiting, report.notes) == (0, [])
    client, runs = stored_runs()
    assert losses(client, runs["sft"]) == [(step, 1 / step) for step in range(1, 2501)]
    assert runs["sft"].info.status == "FINISHED"


def test_what_was_sent_is_recognised_when_the_memory_of_it_is_lost(curves_file, home):
    whole_pipeline(curves_file)
    sync()
    before = stored_runs()[1]
    for path in home.glob("runs/*/track/**/sent.json"):
        path.unlink()
    sync()
    client, runs = stored_runs()
    assert {n: r.info.run_id for n, r in runs.items()} == {
        n: r.info.run_id for n, r in before.items()
    }
    assert len(losses(client, runs["sft"])) == 5


def test_a_killed_stage_is_killed_and_its_resume_is_the_same_run(curves_file, home):
    with recording(stage("sft", curves_file=curves_file)) as recorder:
        pass
    path = recorder.directory / "record.json"
    gone = Process(pid=2**22 + 1, created=1.0)
    killed = read_record(path).model_copy(
        update={"status": "RUNNING", "ended": None, "process": gone}
    )
    path.write_text(killed.model_dump_json(), encoding="utf-8")
    sync()
    client, runs = stored_runs()
    assert runs["sft"].info.status == runs["eagle-1"].info.status == "KILLED"

    with curves_file.open("a", encoding="utf-8") as file:
        # The rows after the checkpoint are written again, and one more follows.
        file.write('{"step": 5, "loss": 0.2, "elapsed": 5.5}\n')
        file.write('{"step": 6, "loss": 0.1, "elapsed": 6.0}\n')
    with recording(stage("sft", curves_file=curves_file)):
        pass
    sync()
    client, resumed = stored_runs()
    assert resumed["sft"].info.run_id == runs["sft"].info.run_id
    assert resumed["sft"].info.status == resumed["eagle-1"].info.status == "FINISHED"
    assert [step for step, _ in losses(client, resumed["sft"])] == [1, 2, 3, 4, 5, 6]
    assert resumed["sft"].data.tags["attempts"] == "2"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), "FAILED"), (Interrupted("x"), "KILLED")]
)
def test_a_stage_that_did_not_finish_says_so(error, status):
    with pytest.raises(type(error)), recording(stage("sft")):
        raise error
    sync()
    _, runs = stored_runs()
    assert (runs["sft"].info.status, runs["eagle-1"].info.status) == (status, status)


def test_a_running_stage_is_sent_while_it_runs(curves_file):
    with recording(stage("sft", curves_file=curves_file)):
        sync()
        client, runs = stored_runs()
        assert runs["sft"].info.status == "RUNNING"
        assert len(losses(client, runs["sft"])) == 5
    sync()
    assert stored_runs()[1]["sft"].info.status == "FINISHED"


def test_the_run_that_kfp_made_is_adopted_and_left_open(curves_file, monkeypatch):
    client = open_store()
    given = client.create_run(client.create_experiment("kfp"), run_name="kfp-task")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", given.info.experiment_id)
    with recording(stage("sft", curves_file=curves_file)):
        pass
    sync()
    _, runs = stored_runs()
    assert set(runs) == {"kfp-task"}
    assert runs["kfp-task"].info.status == "RUNNING"
    assert runs["kfp-task"].data.params == {"seed": "7"}
    assert len(losses(client, given)) == 5


def test_a_run_given_to_the_pipeline_is_the_parent_of_its_stages(monkeypatch):
    client = open_store()
    given = client.create_run(experiment_id(client, locate()), run_name="given")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    start_pipeline("eagle-1", "eagle", {}, {})
    with recording(stage("sft")):
        pass
    sync()
    _, runs = stored_runs()
    assert set(runs) == {"given", "sft"}
    assert runs["sft"].data.tags["mlflow.parentRunId"] == given.info.run_id


def test_stages_run_one_by_one_have_no_parent():
    with recording(stage("sft", pipeline="unnamed")):
        pass
    sync()
    assert set(stored_runs()[1]) == {"sft"}


def test_more_values_than_one_batch_takes_arrive_whole(tmp_path):
    path = tmp_path / "long.jsonl"
    rows = ({"step": step, "loss": step / 2, "rate": 1.0} for step in range(1100))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with recording(stage("sft", curves_file=path)):
        pass
    sync()
    client, runs = stored_runs()
    assert losses(client, runs["sft"]) == [(step, step / 2) for step in range(1100)]


def test_a_damaged_record_is_passed_over(curves_file, home):
    whole_pipeline(curves_file)
    (broken,) = home.glob("runs/eagle-1/track/sft-*/record.json")
    broken.write_text("{", encoding="utf-8")
    assert sync().runs == ["eagle", "prealign clip", "prealign sam"]


def test_the_run_behind_a_fingerprint_is_sent_and_found(curves_file):
    whole_pipeline(curves_file)
    found = run_of(stage("sft").fingerprint)
    assert found == stored_runs()[1]["sft"].info.run_id
    assert run_of("0" * 64) is None


def test_a_stage_that_ran_again_with_other_code_is_judged_by_its_last_run():
    with pytest.raises(ValueError, match="x"), recording(stage("sft")):
        raise ValueError("x")
    with recording(StageRun("eagle-1", "sft", "0" * 64)):
        pass
    sync()
    client = open_store()
    runs = client.search_runs([experiment_id(client, locate())])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [
        ("eagle-1", "FINISHED"), ("sft", "FAILED"), ("sft", "FINISHED"),
    ]  # fmt: skip
