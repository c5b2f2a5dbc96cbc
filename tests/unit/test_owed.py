"""What an earlier run left unsent, the next command of any kind sends, after its own work."""

import subprocess
import sys

import pytest
from pipeline_kit import ROOT, TINY

from manyeyes.cli import main
from manyeyes.tracking.pipeline import finish_pipeline, start_pipeline
from manyeyes.tracking.records import Process, StageRun, read_record
from manyeyes.tracking.spool import recording
from manyeyes.tracking.store import experiment_id, locate, open_store

COMMANDS = {
    "check": ["check", str(TINY)],
    "explain": ["explain", str(TINY)],
    "models": ["models"],
    "a mistake": ["lineage", "models:/nobody@champion"],
}


@pytest.fixture
def killed(home):
    """A run that was killed in its stage: two records say RUNNING, and their process is gone."""
    start_pipeline("eagle-1", "eagle", {}, {})
    with recording(StageRun("eagle-1", "sft", "f" * 64)) as recorder:
        pass
    for path in (home / "runs/eagle-1/track/pipeline.json", recorder.directory / "record.json"):
        gone = {"status": "RUNNING", "ended": None, "process": Process(pid=2**22 + 1, created=1.0)}
        path.write_text(read_record(path).model_copy(update=gone).model_dump_json())
    return home


def statuses():
    client = open_store()
    runs = client.search_runs([experiment_id(client, locate())])
    return sorted((run.info.run_name, run.info.status) for run in runs)


@pytest.mark.parametrize("command", COMMANDS)
def test_any_command_sends_what_is_owed(killed, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(COMMANDS[command])
    assert statuses() == [("eagle", "KILLED"), ("sft", "KILLED")]
    assert [path for path in killed.glob("owed/**/*") if path.is_file()] == []
    capsys.readouterr()


def test_a_server_that_is_still_away_is_a_note_and_changes_no_exit_code(home, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    start_pipeline("eagle-1", "eagle", {}, {})
    finish_pipeline("eagle-1", "FINISHED")
    assert main(["check", str(TINY)]) == 0
    assert capsys.readouterr().err == (
        "MLflow at http://127.0.0.1:9 did not take the records ([Errno 111] Connection refused); "
        "they are kept and sent later.\n"
    )


def test_a_run_that_goes_on_is_left_to_its_own_process(home, capsys):
    start_pipeline("eagle-1", "eagle", {}, {})
    assert main(["check", str(TINY)]) == 0
    assert not locate().exists
    capsys.readouterr()


def test_with_nothing_owed_a_command_loads_no_mlflow(tmp_path):
    code = (
        "import sys\nfrom manyeyes.cli import main\n"
        f"main(['check', {str(TINY)!r}])\n"
        "print([name for name in ('mlflow', 'sqlalchemy', 'manyeyes.tracking') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={"MANYEYES_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": ""},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer.stdout.splitlines()[-1] == "[]"
    assert list(tmp_path.iterdir()) == []
