"""Looks at an MLflow store without changing it: opening one with MLflow would migrate it.

The newest schema revision is read from the names in MLflow's own migration files: importing mlflow
takes seconds, and asking its database layer makes the file.
"""

from __future__ import annotations

import re
import shlex
import sqlite3
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from manyeyes.doctor.findings import Finding, ok, problem, unchecked
from manyeyes.doctor.web import UnreachableError, ask
from manyeyes.tracking import sqlite
from manyeyes.tracking.store import Store, reason

SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
_REVISION = re.compile(r"^(down_revision|revision)\b[^=]*=\s*[\"']([0-9a-f]+)[\"']", re.MULTILINE)
_NEEDED = "Every stage records its run there, and models are registered there."


def local_file(path: Path) -> Finding:
    """Judge the SQLite file of a local store."""
    if not path.exists():
        return ok(f"{path} is made at the first use.")
    try:
        have = sqlite.revision(path)
    except sqlite3.Error as error:
        return problem(
            f"{path} cannot be read as an MLflow database ({reason(error)}).",
            _NEEDED,
            f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.broken')}",
        )
    return judge_revision(have, str(path), shlex.quote(sqlite.uri_of(path)))


def database(store: Store) -> Finding:
    """Judge a store that is a database server, such as PostgreSQL."""
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        engine = sqlalchemy.create_engine(store.uri, connect_args={"connect_timeout": 5})
        with engine.connect() as connection:
            row = connection.execute(
                sqlalchemy.text("SELECT version_num FROM alembic_version")
            ).fetchone()
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        return problem(
            f"The database driver for {store.shown} is missing ({reason(error)}).",
            _NEEDED,
            "Give MLFLOW_TRACKING_URI a driver that is installed, such as postgresql+psycopg2://",
        )
    except SQLAlchemyError as error:
        password = urlsplit(store.uri).password
        said = reason(error).replace(password, "***") if password else reason(error)
        return problem(
            f"The database {store.shown} cannot be read ({said}).",
            _NEEDED,
            "Check MLFLOW_TRACKING_URI; a new database is made with: mlflow db upgrade URI",
        )
    return judge_revision(str(row[0]) if row else "", store.shown, "$MLFLOW_TRACKING_URI")


def judge_revision(have: str, shown: str, uri: str) -> Finding:
    """Compare a database's schema with that of the installed MLflow."""
    known = _revisions()
    if not known:
        return unchecked(
            f"The schema of {shown} was not compared.",
            "MLflow is not installed here.",
            "make setup",
        )
    newest, older = known
    if have == newest:
        return ok(f"{shown} has the schema of the installed MLflow.")
    if have in older:
        return problem(
            f"{shown} has the schema of an older MLflow.",
            "MLflow refuses to open it, so runs are only spooled and models cannot be registered.",
            f"mlflow db upgrade {uri}",
        )
    return problem(
        f"{shown} has a schema that the installed MLflow does not know.",
        "A newer MLflow wrote it; this one refuses to open it.",
        "python -m pip install -r requirements.lock, or use the MLflow that wrote it",
    )


def server(uri: str, login: tuple[str, str] | None, mend_login: str) -> Finding:
    """Judge an MLflow server by its health and by one search of experiments."""
    try:
        health = ask(f"{uri.rstrip('/')}/health")
        answer = ask(uri.rstrip("/") + SEARCH, login=login)
    except UnreachableError as error:
        return problem(
            f"MLflow at {uri} does not answer: {error}.",
            _NEEDED,
            f"curl -v {uri.rstrip('/')}/health",
        )
    if answer.status == 200:
        return ok(f"MLflow at {uri} answers and lets us in.")
    if answer.status == 401:
        who = f"does not accept the user {login[0]}" if login else "wants a user and a password"
        return problem(f"MLflow at {uri} {who}.", _NEEDED, mend_login)
    if answer.status == 403 and health.status == 200:
        host = urlsplit(uri).netloc
        return problem(
            f"MLflow at {uri} refuses requests under this name (403).",
            "MLflow answers only names it was told, against DNS rebinding; or this user may not "
            "read experiments.",
            f"Start the server with --allowed-hosts {host}, or give the user READ permission.",
        )
    return problem(
        f"MLflow at {uri} answers {answer.status} to a search of experiments.",
        _NEEDED,
        f"curl -v '{uri.rstrip('/')}{SEARCH}'",
    )


@cache
def _revisions() -> tuple[str, frozenset[str]] | None:
    """Return the newest schema revision of the installed MLflow, and all older ones."""
    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "store" / "db_migrations" / "versions"
    revisions: set[str] = set()
    followed: set[str] = set()
    for path in folder.glob("*.py"):
        for key, value in _REVISION.findall(path.read_text(encoding="utf-8")):
            (revisions if key == "revision" else followed).add(value)
    newest = sorted(revisions - followed)
    return (newest[0], frozenset(followed)) if len(newest) == 1 else None
