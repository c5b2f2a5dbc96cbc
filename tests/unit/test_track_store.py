"""Where tracking goes, and that its first use is safe for several processes at once."""

import multiprocessing

import pytest

from manyeyes.errors import ManyeyesError, UserError
from manyeyes.track import store as stores
from manyeyes.track.store import create, experiment_id, locate, open_store, reaching


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
