"""Fixtures of the unit tests."""

import os

import pytest

MLFLOW_VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MANYEYES_RUN",
)


@pytest.fixture
def home(tmp_path, tmp_path_factory, monkeypatch):
    """A state directory of its own; the migrated database is made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    for name in MLFLOW_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
