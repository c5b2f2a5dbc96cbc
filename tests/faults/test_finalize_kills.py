"""A run that is killed while it tells MLflow of its end: the next command tells the rest.

The process that is to die counts what it passes while it finalizes (statements of SQL, writes of
files) and sends itself SIGKILL at the moment it was given.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("finalize-kills")]
RUN = "eagle-1"
STAGES = ("prepare", "sft", "eval", "register")
CHANGES = ("os.mkdir", "os.rename", "os.remove")
MOMENTS = 12


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """Import MLflow and make its empty database once, for every process that is forked."""
    base = tmp_path_factory.mktemp("finalize")
    patch = pytest.MonkeyPatch()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        patch.delenv(name, raising=False)
    patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
    patch.setenv("MANYEYES_RUN", RUN)
    patch.setenv("MANYEYES_HOME", str(base))
    from manyeyes.tracking import store

    store._template()
    yield base
    patch.undo()


def record_stages(home):
    """Leave what a pipeline run leaves before it is finalized."""
    from manyeyes.runtime.home import run_directory
    from manyeyes.tracking.pipeline import start_pipeline
    from manyeyes.tracking.records import StageRun
    from manyeyes.tracking.spool import recording

    start_pipeline(RUN, RUN, {"recipe": "eagle"}, {"seed": 7}, {"recipe.yaml": "name: eagle\n"})
    curve = home / "metrics.jsonl"
    curve.write_text("".join(f'{{"step": {n}, "loss": {1 / n}}}\n' for n in range(1, 9)))
    for number, stage in enumerate(STAGES):
        with recording(StageRun(RUN, stage, f"{number}" * 64, metrics_file=curve)):
            pass
        facts = {
            "stage": stage, "expert": None, "state": "done", "fingerprint": f"{number}" * 64,
            "code": {stage: "1"}, "slice": '{"seed":7}', "parents": {}, "outside": {},
            "started": "", "seconds": 1.0, "digest": "d" * 64,
            "details": {"scores": {"average": 61.5}, "name": "mine_v2"},
        }  # fmt: skip
        path = run_directory(RUN) / "stages" / f"{stage}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(facts))


def count_and_die(moment):
    """Count what this process passes from now on; die at ``moment``. Return the counter."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    passed = [0]

    def passing(*_):
        passed[0] += 1
        if passed[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name, arguments):
        writes = name == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
        if writes or name in CHANGES:
            passing()

    event.listen(Engine, "before_cursor_execute", passing)
    event.listen(Engine, "commit", passing)
    sys.addaudithook(audit)
    return passed


def finalize_in_child(home, moment):
    """Record and finalize a run in a process of its own; return how many moments it passed."""
    os.environ["MANYEYES_HOME"] = str(home)
    home.mkdir()
    child = os.fork()
    if not child:
        code = 1
        try:
            record_stages(home)
            passed = count_and_die(moment)
            from manyeyes.pipeline.finalize import finalize

            finalize("SUCCEEDED")
            (home / "passed").write_text(str(passed[0]))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == (-signal.SIGKILL if moment else 0)
    return int((home / "passed").read_text()) if not moment else 0


def told():
    """Return what MLflow has of the run: name, status and number of losses, and its parent."""
    from manyeyes.tracking.store import experiment_id, locate, open_store

    client = open_store()
    runs = client.search_runs([experiment_id(client, locate())])
    parent = next(run for run in runs if run.info.run_name == RUN)
    lines = [
        (
            run.info.run_name,
            run.info.status,
            len(client.get_metric_history(run.info.run_id, "loss")),
            run.data.tags.get("mlflow.parentRunId") in (None, parent.info.run_id),
        )
        for run in runs
    ]
    return sorted(lines), parent, [f.path for f in client.list_artifacts(parent.info.run_id)]


STAGE_LINES = [(stage, "FINISHED", 8, True) for stage in STAGES]


def test_a_kill_at_any_moment_of_finalize_loses_and_doubles_nothing(ready):
    from manyeyes.tracking.pipeline import complete_pipeline
    from manyeyes.tracking.sync import send_owed

    num = finalize_in_child(ready / "calm", 0)
    assert num > MOMENTS
    os.environ["MANYEYES_HOME"] = str(ready / "calm")
    calm = told()
    assert calm[0] == sorted([(RUN, "FINISHED", 0, True), *STAGE_LINES])
    seen = set()
    for number in range(MOMENTS):
        moment = 1 + number * (num - 1) // (MOMENTS - 1)
        home = ready / f"killed-{moment}"
        finalize_in_child(home, moment)
        assert send_owed().notes == []
        lines, parent, files = told()
        seen.add(parent.info.status)
        assert lines == sorted([(RUN, parent.info.status, 0, True), *STAGE_LINES])
        assert files == ["recipe.yaml"]
        complete_pipeline(RUN)  # as a run that finds nothing to do
        send_owed()
        assert told()[0] == calm[0]
        assert [path for path in home.glob("owed/**/*") if path.is_file()] == []
    # Before the end was recorded it was killed; after, it had finished.
    assert seen == {"KILLED", "FINISHED"}
