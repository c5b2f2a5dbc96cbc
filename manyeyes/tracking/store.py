"""Where tracking goes: the server of ``MLFLOW_TRACKING_URI``, else one SQLite file under home.

Three facts of MLflow 3.17 shape this module. A fresh SQLite file takes seconds to migrate (8 to 13
on a loaded laptop), so a migrated file per MLflow version is kept in the user's cache and copied.
The first use of a new file by several processes at once breaks it (3 of 4 died), so the file is
made once, under a lock, complete before it has its name. The default artifact location is relative
to the working directory, which differs between steps, so ours is absolute and explicit.

MLflow is imported inside functions only: it costs two to four seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import sqlite3
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from manyeyes.errors import ManyeyesError, UserError
from manyeyes.runtime.home import home
from manyeyes.runtime.locks import scratch, until_the_end
from manyeyes.tracking import sqlite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient

EXPERIMENT_NAME = "manyeyes"
TRACKING_URI = "MLFLOW_TRACKING_URI"
LOCK_SECONDS = 600.0
"""A holder that dies lets go, so this is for one that is slow: making a database on a busy disk."""
PROBE_SECONDS = 3.0
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""By this tag MLflow's page opens the experiment as training, not in its menu for chat traces."""
GUESSED = "_inferred"
"""How the kinds end that MLflow's page has guessed."""
MAX_REASON = 200

ENVIRONMENT = {
    # Nothing leaves the machine unasked, and a pickled model is refused.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A server that is down must cost seconds, not the minutes of MLflow's seven retries.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Store:
    """One tracking store.

    Attributes:
        uri: What MLflow calls the tracking URI; also used for the registry.
        artifacts: Where artifacts of a local store lie; None leaves it to the server.
        home: The folder of our own state: spool, locks, the SQLite file.
    """

    uri: str
    artifacts: Path | None
    home: Path

    @property
    def database(self) -> Path | None:
        """The SQLite file of this store, None for a server or another database."""
        return sqlite.path_of(self.uri)

    @property
    def key(self) -> str:
        """A short name for this store that shows no password of its URI.

        A file under home has the same name when the project's folder is moved or copied with it.
        """
        database, name = self.database, self.uri
        if database is not None and database.is_relative_to(self.home):
            name = f"home:{database.relative_to(self.home)}"
        return hashlib.sha256(name.encode()).hexdigest()[:16]

    @property
    def shown(self) -> str:
        """The store as a person may read it: without user and password."""
        address = urlsplit(self.uri)
        if not address.hostname:
            return self.uri
        port = f":{address.port}" if address.port else ""
        return f"{address.scheme}://{address.hostname}{port}"

    @property
    def exists(self) -> bool:
        """Whether there can be anything to read: a local file that is not there holds nothing."""
        return self.database is None or self.database.exists()


def set_environment() -> None:
    """Give MLflow our defaults; what the user has set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def locate() -> Store:
    """Say where tracking goes, without touching the disk or importing MLflow.

    Raises:
        UserError: ``MLFLOW_TRACKING_URI`` names a folder.
    """
    folder = home()
    uri = os.environ.get(TRACKING_URI, "").strip()
    if not uri:
        return Store(sqlite.uri_of(folder / "mlflow.db"), folder / "mlartifacts", folder)
    database = sqlite.path_of(uri)
    if database is not None and database.name:
        file = sqlite.uri_of(database.absolute(), sqlite.query_of(uri))
        return Store(file, database.absolute().parent / "mlartifacts", folder)
    if "://" in uri and not uri.startswith(("file:", "sqlite:")):
        return Store(uri, None, folder)
    raise UserError(
        f"MLFLOW_TRACKING_URI is {uri!r}, but MLflow no longer tracks in plain folders: "
        f"give an http(s):// server or sqlite:///FILE, or unset it to use {folder / 'mlflow.db'}."
    )


@contextlib.contextmanager
def locked(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock file ``path``; a holder that dies releases it.

    Raises:
        ManyeyesError: another process held it for so many seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=seconds):
            yield
    except Timeout as error:
        raise ManyeyesError(
            f"{path} was held by another process for {seconds:.0f} s: wait for it to end "
            "and run the same command again."
        ) from error


def open_store(store: Store | None = None) -> MlflowClient:
    """Return a client of a store that is ready to use; the local file is made when it is not there.

    Raises:
        UserError: the folder of a local store cannot be written, or its file is no database.
        ManyeyesError: a database server does not let us in.
    """
    store = store or locate()
    set_environment()
    try:
        create(store)
    except OSError as error:
        raise UserError(
            f"The tracking store {store.uri} cannot be created ({error.strerror}): "
            "set MANYEYES_HOME to a folder that can be written."
        ) from error
    if store.database is not None:
        sqlite.check(store.database)
    elif not store.uri.startswith(("http://", "https://")):
        _check_login(store)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


@contextlib.contextmanager
def reaching(store: Store) -> Iterator[MlflowClient]:
    """Open a store for work that is impossible without it, and say so when it does not answer.

    Raises:
        ManyeyesError: MLflow failed, in one sentence.
    """
    try:
        probe(store)
        client = open_store(store)
    except OSError as error:
        raise _unreachable(store, error) from error
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield client
    except (MlflowException, SQLAlchemyError) as error:
        raise _unreachable(store, error) from error


@contextlib.contextmanager
def as_default(store: Store) -> Iterator[None]:
    """Make ``store`` the one that MLflow uses by itself.

    Its SQL registry looks a model's id up in the global tracking URI, not in the client's.
    """
    before = os.environ.get(TRACKING_URI)
    os.environ[TRACKING_URI] = store.uri
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRACKING_URI]
        else:
            os.environ[TRACKING_URI] = before


def _check_login(store: Store) -> None:
    """Connect to a database server once: MLflow would try ten times, with pages of warnings.

    Raises:
        ManyeyesError: it is away or refuses the login, or its driver is not installed.
    """
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    options = {}
    if urlsplit(store.uri).scheme.partition("+")[0] in ("postgresql", "mysql"):
        options = {"connect_timeout": int(PROBE_SECONDS)}
    try:
        engine = sqlalchemy.create_engine(store.uri, connect_args=options)
        engine.connect().close()
        engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        raise _unreachable(store, error) from error


def _unreachable(store: Store, error: Exception) -> ManyeyesError:
    password = urlsplit(store.uri).password
    said = reason(error).replace(password, "***") if password else reason(error)
    return ManyeyesError(
        f"MLflow at {store.shown} did not answer as it should ({said}): "
        "check MLFLOW_TRACKING_URI and that the server runs, then run the same command again."
    )


def probe(store: Store) -> None:
    """Connect to a server once: MLflow's own timeouts and retries would take minutes.

    Raises:
        OSError: nobody answers.
    """
    address = urlsplit(store.uri)
    if address.scheme in ("http", "https") and address.hostname:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=PROBE_SECONDS).close()


def reason(error: Exception) -> str:
    """Return the first line of an error, short; the name of its class when it has no words."""
    lines = str(error).strip().splitlines()
    return lines[0][:MAX_REASON] if lines else type(error).__name__


def create(store: Store) -> None:
    """Make the SQLite file of a local store once, whoever comes first."""
    database = store.database
    if database is None or database.exists():
        return
    with locked(database.with_name(database.name + ".lock")):
        if not database.exists():
            _place_copy(_template(), database, store.artifacts or database.parent / "mlartifacts")


def experiment_id(client: MlflowClient, store: Store) -> str:
    """Return the id of the experiment to record in, creating it once with its artifact location.

    ``MLFLOW_EXPERIMENT_ID`` (KFP sets it) or ``MLFLOW_EXPERIMENT_NAME`` choose another.
    """
    given = os.environ.get("MLFLOW_EXPERIMENT_ID", "").strip()
    if given:
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or EXPERIMENT_NAME
    with locked(store.home / "mlflow-experiment.lock"):
        found = client.get_experiment_by_name(name)
        if found is not None:
            if _is_guess(found.tags.get(KIND_TAG, GUESSED)):
                client.set_experiment_tag(found.experiment_id, KIND_TAG, KIND)
            return str(found.experiment_id)
        location = (store.artifacts / name).as_uri() if store.artifacts else None
        return _create_experiment(client, name, location)


def _is_guess(kind: str) -> bool:
    """Whether MLflow's page guessed the kind of an experiment, as opposed to a person's choice."""
    return kind.endswith(GUESSED)


def _create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(
            client.create_experiment(name, artifact_location=location, tags={KIND_TAG: KIND})
        )
    except MlflowException:
        # Our lock does not reach other machines: one of them may have been faster.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def cache_directory() -> Path:
    """Return the folder for what can be made again: ``XDG_CACHE_HOME/manyeyes``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "manyeyes"


def _template() -> Path:
    """Return a migrated, empty SQLite file for the installed MLflow, making it if needed."""
    version = metadata.version("mlflow")
    path = cache_directory() / f"mlflow-{version}.db"
    if path.exists():
        return path
    try:
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                _migrate(path)
        return path
    except OSError:
        # A cache that cannot be written (read-only home in a container) costs time, not the run.
        private = until_the_end() / path.name
        _migrate(private)
        return private


def _migrate(path: Path) -> None:
    """Let MLflow create a database, and put a consistent copy of it at ``path``."""
    from mlflow import MlflowClient

    with scratch(path.parent, "mlflow-") as folder:
        fresh, copy = folder / "fresh.db", folder / "copy.db"
        client = MlflowClient(tracking_uri=sqlite.uri_of(fresh))
        client.search_experiments(max_results=1)
        with (
            contextlib.closing(sqlite3.connect(fresh)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        copy.replace(path)


def _place_copy(template: Path, database: Path, artifacts: Path) -> None:
    """Copy the template beside its destination, correct it there, then give it its name."""
    database.parent.mkdir(parents=True, exist_ok=True)
    partial = database.with_name(database.name + ".partial")
    shutil.copyfile(template, partial)
    with contextlib.closing(sqlite3.connect(partial)) as connection, connection:
        # The template's experiment 0 points at the folder in which the template was made.
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0",
            ((artifacts / "Default").as_uri(),),
        )
    partial.replace(database)
