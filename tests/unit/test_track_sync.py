"""Sending the spool: the whole tree, exactly once, whatever was down or killed before."""

import json

import pytest

from manyeyes.errors import Interrupted
from manyeyes.tracking.pipeline import (
    Outcome,
    complete_pipeline,
    finish_pipeline,
    keep_artifacts,
    start_pipeline,
)
from manyeyes.tracking.records import DatasetInput, Process, StageRun, read_record
from manyeyes.tracking.spool import recording
from manyeyes.tracking.store import experiment_id, locate, open_store
from manyeyes.tracking.sync import run_of, send_owed, sync

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
    report = send_owed()
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
    report = send_owed()
    assert (report.runs, report.waiting) == ([], 3)
    assert report.notes == [
        "MLflow at http://127.0.0.1:9 did not take the records ([Errno 111] Connection refused); "
        "they are kept and sent later."
    ]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert send_owed().runs == []  # it was meant for another store
    assert sync("eagle-1").waiting == 0
    client, runs = stored_runs()
    assert len(losses(client, runs["sft"])) == 5
    again = sync("eagle-1")
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
        report = send_owed()
    assert report.waiting == 1
    assert report.notes == [
        f"MLflow at {locate().shown} did not take the records (Connection refused); "
        "they are kept and sent later."
    ]
    report = send_owed()
    assert (report.waiting, report.notes) == (0, [])
    client, runs = stored_runs()
    assert losses(client, runs["sft"]) == [(step, 1 / step) for step in range(1, 2501)]
    assert runs["sft"].info.status == "FINISHED"


def test_what_was_sent_is_recognised_when_the_memory_of_it_is_lost(curves_file, home):
    whole_pipeline(curves_file)
    send_owed()
    before = stored_runs()[1]
    for path in home.glob("runs/*/track/**/sent.json"):
        path.unlink()
    sync("eagle-1")
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
    send_owed()
    client, runs = stored_runs()
    assert runs["sft"].info.status == runs["eagle-1"].info.status == "KILLED"

    with curves_file.open("a", encoding="utf-8") as file:
        # The rows after the checkpoint are written again, and one more follows.
        file.write('{"step": 5, "loss": 0.2, "elapsed": 5.5}\n')
        file.write('{"step": 6, "loss": 0.1, "elapsed": 6.0}\n')
    with recording(stage("sft", curves_file=curves_file)):
        pass
    send_owed()
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
    send_owed()
    _, runs = stored_runs()
    assert (runs["sft"].info.status, runs["eagle-1"].info.status) == (status, status)


def test_a_running_stage_is_sent_while_it_runs(curves_file):
    with recording(stage("sft", curves_file=curves_file)):
        assert send_owed().runs == []
        sync("eagle-1")
        client, runs = stored_runs()
        assert runs["sft"].info.status == "RUNNING"
        assert len(losses(client, runs["sft"])) == 5
    send_owed()
    assert stored_runs()[1]["sft"].info.status == "FINISHED"


def test_the_run_that_kfp_made_is_adopted_and_left_open(curves_file, monkeypatch):
    client = open_store()
    given = client.create_run(client.create_experiment("kfp"), run_name="kfp-task")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", given.info.experiment_id)
    with recording(stage("sft", curves_file=curves_file)):
        pass
    send_owed()
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
    sync("eagle-1")
    _, runs = stored_runs()
    assert set(runs) == {"given", "sft"}
    assert runs["sft"].data.tags["mlflow.parentRunId"] == given.info.run_id


def test_stages_run_one_by_one_have_no_parent():
    with recording(stage("sft", pipeline="unnamed")):
        pass
    send_owed()
    assert set(stored_runs()[1]) == {"sft"}


def test_more_values_than_one_batch_takes_arrive_whole(tmp_path):
    path = tmp_path / "long.jsonl"
    rows = ({"step": step, "loss": step / 2, "rate": 1.0} for step in range(1100))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with recording(stage("sft", curves_file=path)):
        pass
    send_owed()
    client, runs = stored_runs()
    assert losses(client, runs["sft"]) == [(step, step / 2) for step in range(1100)]


def test_a_damaged_record_is_passed_over(curves_file, home):
    whole_pipeline(curves_file)
    (broken,) = home.glob("runs/eagle-1/track/sft-*/record.json")
    broken.write_text("{", encoding="utf-8")
    assert send_owed().runs == ["eagle", "prealign clip", "prealign sam"]


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
    send_owed()
    client = open_store()
    runs = client.search_runs([experiment_id(client, locate())])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [
        ("eagle-1", "FINISHED"), ("sft", "FAILED"), ("sft", "FINISHED"),
    ]  # fmt: skip


def owed_files(home):
    return sorted(path.name for path in home.glob("owed/**/*") if path.is_file())


def test_what_is_owed_is_forgotten_when_it_was_sent(curves_file, home):
    assert send_owed().runs == []
    whole_pipeline(curves_file)
    assert owed_files(home) == ["eagle-1"]
    send_owed()
    assert owed_files(home) == []
    finish_pipeline("eagle-1", "FAILED")
    assert send_owed().runs == ["eagle"]
    assert stored_runs()[1]["eagle"].info.status == "FAILED"


def test_what_is_recorded_while_it_is_sent_is_owed_anew(curves_file, home, monkeypatch):
    from mlflow import MlflowClient

    whole_pipeline(curves_file)
    close = MlflowClient.set_terminated

    def recorded_meanwhile(self, *arguments, **options):
        close(self, *arguments, **options)
        with recording(StageRun("eagle-1", "eval", "e" * 64)):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", recorded_meanwhile)
        send_owed()
    assert owed_files(home) == ["eagle-1", "eagle-1"]
    send_owed()
    assert owed_files(home) == []
    assert "eval" in stored_runs()[1]


def test_a_run_that_was_deleted_is_made_again_when_there_is_more_to_say(curves_file):
    whole_pipeline(curves_file)
    send_owed()
    client, runs = stored_runs()
    client.delete_run(runs["eagle"].info.run_id)
    finish_pipeline("eagle-1", "FINISHED")
    report = send_owed()
    assert (report.runs, report.notes) == (["eagle"], [])
    assert stored_runs()[1]["eagle"].info.run_id != runs["eagle"].info.run_id


@pytest.mark.parametrize(("status", "expected"), [("RUNNING", "FINISHED"), ("FAILED", "FINISHED")])
def test_a_run_whose_results_are_all_there_is_finished(curves_file, home, status, expected):
    whole_pipeline(curves_file)
    path = home / "runs/eagle-1/track/pipeline.json"
    gone = Process(pid=2**22 + 1, created=1.0)
    ended = read_record(path).model_copy(update={"status": status, "process": gone})
    path.write_text(ended.model_dump_json(), encoding="utf-8")
    send_owed()
    complete_pipeline("eagle-1")
    send_owed()
    assert stored_runs()[1]["eagle"].info.status == expected


def test_the_parent_carries_scores_recipe_report_and_the_dataset_under_its_name(home):
    start_pipeline("eagle-1", "eagle", {}, {"seed": 7}, {"recipe.yaml": "kind: recipe\n"})
    with recording(stage("sft")):
        pass
    keep_artifacts("eagle-1", {"report.html": b"<html></html>"})
    named = DATA.model_copy(update={"name": "mine_v2"})
    finish_pipeline("eagle-1", "FINISHED", Outcome({"score/average": 61.5}, (named,)))
    send_owed()
    client, runs = stored_runs()
    parent = runs["eagle"]
    assert parent.data.metrics == {"score/average": 61.5}
    assert parent.data.params == {"seed": "7"}
    (data,) = parent.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("mine_v2", "d" * 36)
    names = [file.path for file in client.list_artifacts(parent.info.run_id)]
    assert names == ["recipe.yaml", "report.html"]
    kept = home / "mlartifacts/manyeyes" / parent.info.run_id / "artifacts/report.html"
    assert kept.read_bytes() == b"<html></html>"
    keep_artifacts("eagle-1", {"report.html": b"<html>2</html>"})
    sync("eagle-1")
    assert kept.read_bytes() == b"<html>2</html>"


def test_names_that_mlflow_refuses_are_written_as_it_takes_them():
    start_pipeline("eagle-1", "eagle", {}, {"eval": {"tasks": {"[/red]": "exact_match"}}})
    finish_pipeline("eagle-1", "FINISHED", Outcome({"score/[/red]": 1.0}))
    assert send_owed().notes == []
    run = stored_runs()[1]["eagle"]
    assert run.data.params == {"eval.tasks._/red_": "exact_match"}
    assert run.data.metrics == {"score/_/red_": 1.0}
