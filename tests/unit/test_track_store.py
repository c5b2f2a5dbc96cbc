"""Where tracking goes, and that its first use is safe for several processes at once."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from manyeyes.errors import ManyeyesError, UserError
from manyeyes.tracking import sqlite
from manyeyes.tracking import store as stores
from manyeyes.tracking.store import create, experiment_id, locate, open_store, reaching


@pytest.mark.parametrize(
    ("variable", "uri", "artifacts"),
    [
        ("", "sqlite:///{home}/mlflow.db", "{home}/mlartifacts"),
        ("sqlite:///{home}/other.db", "sqlite:///{home}/other.db", "{home}/mlartifacts"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000", None),
        ("postgresql+psycopg2://u:p@h/d", "postgresql+psycopg2://u:p@h/d", None),
    ],
)
def test_the_variable_chooses_the_store(home, monkeypatch, variable, uri, artifacts):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable.format(home=home))
    store = locate()
    assert store.uri == uri.format(home=home)
    assert (str(store.artifacts) if store.artifacts else None) == (
        artifacts.format(home=home) if artifacts else None
    )


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "sqlite:///"])
def test_a_folder_is_no_store(home, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError) as error:
        locate()
    assert str(error.value) == (
        f"MLFLOW_TRACKING_URI is {uri!r}, but MLflow no longer tracks in plain folders: "
        f"give an http(s):// server or sqlite:///FILE, or unset it to use {home}/mlflow.db."
    )


@pytest.mark.parametrize(
    ("folder", "written"),
    [
        ("plain", "/plain/mlflow.db"),
        ("a #b 'q' &ü+;=:@~", "/a #b 'q' &ü+;=:@~/mlflow.db"),
        ("t%20x", "%2Ft%2520x%2Fmlflow.db"),
        ("job_feature%2Fx", "%2Fjob_feature%252Fx%2Fmlflow.db"),
        ("a?b=c", "%2Fa%3Fb%3Dc%2Fmlflow.db"),
        ("100%", "%2F100%25%2Fmlflow.db"),
        ("%3F", "%2F%253F%2Fmlflow.db"),
    ],
)
def test_a_folder_of_any_name_is_the_one_that_is_opened(folder, written):
    from sqlalchemy import make_url

    path = Path("/") / folder / "mlflow.db"
    uri = sqlite.uri_of(path)
    assert uri == f"sqlite:///{written}"
    assert (make_url(uri).database, sqlite.path_of(uri)) == (str(path), path)


@pytest.mark.parametrize("folder", ["t%20x", "wei rd #1 %20 ü?&'q", "a?b"])
def test_records_and_files_lie_in_the_home_whatever_its_name_is(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / folder / "home"))
    monkeypatch.chdir(tmp_path)
    client = open_store()
    run = client.create_run(experiment_id(client, locate())).info.run_id
    client.log_text(run, "words", "said.txt")
    assert [file.path for file in client.list_artifacts(run)] == ["said.txt"]
    home = tmp_path / folder / "home"
    assert (home / f"mlartifacts/manyeyes/{run}/artifacts/said.txt").read_text() == "words"
    assert (home / "mlflow.db").stat().st_size > 100_000
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def test_options_of_an_address_are_kept(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/a%20b.db?timeout=9")
    assert locate().database == home / "a b.db"
    assert locate().uri == f"sqlite:///{home}/a b.db?timeout=9"


def test_a_moved_home_is_the_same_store(home, tmp_path, monkeypatch):
    before = locate().key
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "moved"))
    assert locate().key == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    assert locate().key != before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("folder", "unable to open database file"),
        ("text", "file is not a database"),
        ("empty", "no such table: alembic_version"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_sentence_at_once(home, capfd, content, said):
    path = home / "mlflow.db"
    home.mkdir()
    if content == "folder":
        path.mkdir()
    else:
        path.write_text("" if content == "empty" else "no database, but long enough" * 40)
    with pytest.raises(UserError) as error, reaching(locate()):
        pass
    assert str(error.value) == (
        f"{path} cannot be read as an MLflow database ({said}): put it back from a backup, "
        "or move it away; a new one is made at the next use."
    )
    assert capfd.readouterr().err == ""


def test_what_a_killed_writer_left_in_the_journal_is_undone(home):
    """The journal of a transaction that was not completed is there: the file can be opened."""
    client = open_store()
    experiment = experiment_id(client, locate())
    script = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('BEGIN')\n"
        "db.execute('CREATE TABLE half (text)')\n"
        "db.executemany('INSERT INTO half VALUES (?)', [('x' * 4000,)] * 200)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, home / "mlflow.db"], check=False)
    assert (home / "mlflow.db-journal").stat().st_size > 0
    assert open_store().get_experiment(experiment).name == "manyeyes"
    assert sqlite.revision(home / "mlflow.db")


def test_a_database_server_that_is_away_is_one_sentence_at_once(home, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://user:secret@127.0.0.1:9/db")
    with pytest.raises(ManyeyesError) as error, reaching(locate()):
        pass
    text = str(error.value)
    assert text.startswith(
        "MLflow at postgresql+psycopg2://127.0.0.1:9 did not answer as it should"
    )
    assert "Connection refused" in text
    assert "secret" not in text
    assert capfd.readouterr().err == ""


def test_the_experiment_opens_as_training(home):
    client = open_store()
    found = client.get_experiment(experiment_id(client, locate()))
    assert found.tags == {"mlflow.experimentKind": "custom_model_development"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("genai_development_inferred", "custom_model_development"),
        ("genai_development", "genai_development"),
    ],
)
def test_the_kind_that_mlflow_guessed_is_corrected_and_a_persons_choice_stays(home, kind, expected):
    client = open_store()
    client.create_experiment("manyeyes", tags={"mlflow.experimentKind": kind})
    found = client.get_experiment(experiment_id(client, locate()))
    assert found.tags["mlflow.experimentKind"] == expected


def test_a_store_is_shown_without_its_password(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:secret@db:5432/mlflow")
    assert locate().shown == "postgresql://db:5432"


def test_a_dead_server_is_one_sentence(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ManyeyesError) as error, reaching(locate()):
        pass
    assert str(error.value) == (
        "MLflow at http://127.0.0.1:9 did not answer as it should ([Errno 111] Connection refused)"
        ": check MLFLOW_TRACKING_URI and that the server runs, then run the same command again."
    )


def test_a_home_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch, home):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError) as error:
        open_store()
    assert str(error.value) == (
        f"The tracking store sqlite:///{tmp_path}/file/mlflow.db cannot be created "
        "(File exists): set MANYEYES_HOME to a folder that can be written."
    )


def test_artifacts_have_one_absolute_place(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = open_store()
    identifier = experiment_id(client, locate())
    assert (
        client.get_experiment(identifier).artifact_location == f"file://{home}/mlartifacts/manyeyes"
    )
    assert client.get_experiment("0").artifact_location == f"file://{home}/mlartifacts/Default"
    assert experiment_id(client, locate()) == identifier
    assert not (tmp_path / "mlruns").exists()


def test_the_experiment_that_is_named_is_used(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    client = open_store()
    assert client.get_experiment(experiment_id(client, locate())).name == "mine"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    assert experiment_id(client, locate()) == "77"


def test_a_cache_that_cannot_be_written_costs_only_time(home, tmp_path, monkeypatch):
    template = stores._template()
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(stores, "_migrate", lambda path: path.write_bytes(template.read_bytes()))
    create(locate())
    assert locate().exists


def first_use():
    client = open_store()
    run = client.create_run(experiment_id(client, locate()))
    client.log_metric(run.info.run_id, "loss", 1.0)


def test_four_processes_may_be_first_at_once(home):
    stores._template()
    import mlflow  # noqa: F401  # once, before the fork: it costs seconds in each process

    processes = multiprocessing.get_context("fork")
    users = [processes.Process(target=first_use) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0, 0, 0, 0]
    client = open_store()
    runs = client.search_runs([experiment_id(client, locate())])
    assert [run.data.metrics for run in runs] == [{"loss": 1.0}] * 4
    assert [one.name for one in client.search_experiments()] == ["manyeyes", "Default"]
