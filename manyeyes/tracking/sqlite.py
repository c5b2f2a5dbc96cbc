"""SQLite files as MLflow names them, for every path there is.

SQLAlchemy undoes percent encoding in a database's URI and cuts it at ``?``, so a path with ``%20``
or ``?`` in it must be encoded, or another file is opened. MLflow makes the folder of the file from
the URI as it is written: an encoded folder would be made beside the true one. So where anything is
encoded, the slashes are too, and there is no folder in the text.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote, unquote

from manyeyes.errors import UserError

PREFIX = "sqlite:///"
_TAKEN_LITERALLY = ("%", "?")


def uri_of(path: Path, query: str = "") -> str:
    """Return the URI by which MLflow and SQLAlchemy open exactly this file.

    Args:
        path: absolute.
        query: options for the driver, without the ``?``.
    """
    text = str(path)
    if any(sign in text for sign in _TAKEN_LITERALLY):
        text = quote(text, safe="")
    return f"{PREFIX}{text}" + (f"?{query}" if query else "")


def path_of(uri: str) -> Path | None:
    """Return the file that SQLAlchemy opens for a URI; None for another kind of database."""
    if not uri.startswith(PREFIX):
        return None
    return Path(unquote(uri.removeprefix(PREFIX).partition("?")[0]))


def query_of(uri: str) -> str:
    """Return the driver's options of a URI, empty without any."""
    return uri.partition("?")[2]


def revision(path: Path) -> str:
    """Return the revision of the schema in MLflow's database, empty when it holds none.

    The file is opened for writing where that is allowed: what a killed writer left in its journal
    is undone first, as every user of the file does.

    Raises:
        sqlite3.Error: it cannot be opened, or is no database of MLflow.
    """
    address = f"file:{quote(str(path))}?mode=rw"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else ""


def check(path: Path) -> None:
    """Look whether a file can be opened, before MLflow tries for minutes.

    Raises:
        UserError: it cannot, or it is no database of MLflow.
    """
    try:
        revision(path)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "") in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return  # another process writes; MLflow waits for it
        raise UserError(
            f"{path} cannot be read as an MLflow database ({error}): put it back from a backup, "
            "or move it away; a new one is made at the next use."
        ) from None
