"""The end of a pipeline run: how it ended, in MLflow's words, and what its own record shows."""

import json

import pytest

from manyeyes.pipeline.finalize import finalize
from manyeyes.runtime.home import run_directory
from manyeyes.runtime.journal import Event, write_event
from manyeyes.tracking.pipeline import start_pipeline
from manyeyes.tracking.records import StageRun, read_record
from manyeyes.tracking.spool import recording

RUN = "eagle-1"
DATASET, SFT = "d" * 64, "c" * 64


@pytest.fixture(autouse=True)
def ended(home, monkeypatch):
    """What a pipeline run leaves when it ends, while MLflow is away."""
    monkeypatch.setenv("MANYEYES_RUN", RUN)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    outcome("prepare", {"seed": 7, "data": {"kind": "dataset"}}, {"name": "mine_v2"}, DATASET)
    for expert in ("clip", "sam"):
        seen = {"seed": 7, "model": {"grid": 4}, "section": {"steps": 2}, "expert": expert}
        outcome("prealign", seen, {}, SFT, expert)
    outcome("sft", {"seed": 7, "model": {"grid": 4}, "section": {"steps": 3}}, {}, SFT)
    scores = {"average": 50.0, "charts": 61.5, "charts_blind": 11.5}
    outcome("eval", {"seed": 7, "section": {"split": "test"}}, {"scores": scores}, "e" * 64)


def outcome(stage, seen, details, digest, expert=None):
    """Record how a stage ended, as the runner does."""
    facts = {
        "stage": stage, "expert": expert, "state": "cached", "fingerprint": f"{stage}".ljust(64),
        "code": {stage: "1"}, "slice": json.dumps(seen), "parents": {}, "outside": {},
        "started": "", "seconds": 1.0, "digest": digest, "details": details,
    }  # fmt: skip
    path = run_directory(RUN) / "stages" / f"{stage}-{expert}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts), encoding="utf-8")


def record():
    return read_record(run_directory(RUN) / "track/pipeline.json")


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("SUCCEEDED", "FINISHED"),  # kfp.local
        ("COMPLETE", "FINISHED"),  # a cluster
        ("CACHED", "FINISHED"),
        ("FAILED", "FAILED"),
        ("RUNNING", "FAILED"),  # a pod that was killed before it could say how it ended
        ("UNKNOWN", "FAILED"),
        ("CANCELED", "KILLED"),
    ],
)
def test_the_states_of_kfp_are_those_of_mlflow(state, status):
    start_pipeline(RUN, RUN, {}, {})
    assert finalize(state).state == state
    assert record().status == status


def test_a_run_that_was_stopped_did_not_fail(tmp_path, monkeypatch):
    start_pipeline(RUN, RUN, {}, {})
    monkeypatch.setenv("MANYEYES_JOURNAL", str(tmp_path / "journal.jsonl"))
    write_event(tmp_path / "journal.jsonl", Event("run", "failed", exit_code=75))
    finalize("FAILED")
    assert record().status == "KILLED"


def test_the_record_shows_scores_and_the_dataset_whether_stages_ran_or_were_cached():
    start_pipeline(RUN, RUN, {"recipe": "eagle"}, {"seed": 7})
    finalize("SUCCEEDED")
    assert record().scores == {
        "score/average": 50.0, "score/charts": 61.5, "score/charts_blind": 11.5,
    }  # fmt: skip
    assert [(data.name, data.digest) for data in record().datasets] == [("mine_v2", DATASET)]
    assert record().params == {"seed": "7"}


def test_records_of_before_are_read_too():
    """They had one digest for all code, and nothing of what lies outside."""
    path = run_directory(RUN) / "stages/sft-None.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    del facts["outside"]
    path.write_text(json.dumps({**facts, "code": "c"}), encoding="utf-8")
    summary = finalize("SUCCEEDED")
    assert [(stage.code, stage.outside) for stage in summary.stages if stage.stage == "sft"] == [
        ("c", {})
    ]


def test_where_nobody_recorded_the_start_the_recipe_is_what_the_stages_saw():
    """On a cluster the exit handler is the first that sees the whole run."""
    with recording(StageRun(RUN, "sft", "f" * 64)):
        pass
    finalize("COMPLETE")
    assert record().status == "FINISHED"
    assert record().params == {
        "seed": "7", "data.kind": "dataset", "model.grid": "4", "prealign.experts.clip.steps": "2",
        "prealign.experts.sam.steps": "2", "sft.steps": "3", "eval.split": "test",
    }  # fmt: skip


def test_runs_that_kfp_made_have_a_parent_of_its_own(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "a" * 32)
    with recording(StageRun(RUN, "sft", "f" * 64)):
        pass
    finalize("COMPLETE")
    assert record() is None
