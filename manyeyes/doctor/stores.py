"""The local checks of what keeps results: content store, DVC repository, MLflow store."""

from __future__ import annotations

import configparser
from pathlib import Path
from urllib.parse import urlsplit

from manyeyes.doctor import tracking
from manyeyes.doctor.bucket import TriedBucket, try_bucket
from manyeyes.doctor.findings import Finding, ok, problem, unchecked, warning
from manyeyes.doctor.machine import Machine
from manyeyes.errors import UserError
from manyeyes.store.bucket import S3Access
from manyeyes.tracking.store import locate


def content_store(machine: Machine) -> list[Finding]:
    """Are the stored results whole?"""
    root = machine.home / "store"
    damaged = _num_files(root / "damaged")
    if damaged:
        return [
            warning(
                f"{damaged} damaged object{'s were' if damaged > 1 else ' was'} set aside in "
                f"{root / 'damaged'}.",
                "Bytes changed on this disk; the stages that made them run again by themselves.",
                f"Check the disk, then: rm -r {root / 'damaged'}",
            )
        ]
    stored = _num_files(machine.home / "index")
    return [ok(f"{stored} result{'' if stored == 1 else 's'} in {root}.")]


def dvc_repository(machine: Machine) -> list[Finding]:
    """Is there a DVC repository, and is its remote the place where results are?"""
    folder = next(
        (place / ".dvc" for place in (machine.folder, *machine.folder.parents)
         if (place / ".dvc").is_dir()),
        None,
    )  # fmt: skip
    if folder is None:
        return [
            warning(
                f"{machine.folder} is in no DVC repository.",
                "dvc pull, dvc push and dvc repro need one; manyeyes run does not.",
                "cd to the repository, or: dvc init --no-scm",
            )
        ]
    try:
        sections = _read_config(folder)
    except configparser.Error as error:
        return [
            problem(
                f"{folder / 'config'} cannot be read ({type(error).__name__}).",
                "DVC fails with every command.",
                f"git -C {folder.parent} checkout .dvc/config",
            )
        ]
    name = sections.get("core", {}).get("remote")
    if name is None:
        return [
            warning(
                "DVC has no default remote.",
                "dvc push and dvc pull do not know where results are.",
                f"dvc remote add --default local {machine.home / 'store'}",
            )
        ]
    remote = sections.get(f'remote "{name}"')
    if remote is None or "url" not in remote:
        return [
            problem(
                f"DVC's default remote {name} is not described in {folder / 'config'}.",
                "dvc push and dvc pull fail.",
                f"dvc remote add {name} URL",
            )
        ]
    return [_remote(machine, folder, name, remote)]


def _remote(machine: Machine, folder: Path, name: str, remote: dict[str, str]) -> Finding:
    """Judge one remote by its URL."""
    address = urlsplit(remote["url"])
    match address.scheme:
        case "s3":
            return try_bucket(_bucket(name, remote))
        case "" | "file":
            return _folder_remote(machine, name, (folder / address.path).resolve())
        case _:
            return unchecked(
                f"DVC's remote {name} ({address.scheme}) was not tried.",
                "doctor tries folders and S3 only.",
                f"dvc status --cloud --remote {name}",
            )


def _folder_remote(machine: Machine, name: str, place: Path) -> Finding:
    store = (machine.home / "store").resolve()
    if place == store:
        return ok(f"DVC's remote {name} is the content store.")
    return warning(
        f"DVC's remote {name} is {place}, but results are stored in {store}.",
        "dvc pull finds only what dvc push has brought there.",
        f"dvc remote modify --local {name} url {store}",
    )


def _bucket(name: str, remote: dict[str, str]) -> TriedBucket:
    address = urlsplit(remote["url"])
    keys = "access_key_id" in remote
    return TriedBucket(
        name=address.netloc,
        prefix=address.path.strip("/"),
        login=f"the keys of DVC's remote {name}" if keys else "the AWS identity of this shell",
        access=S3Access(
            endpoint=remote.get("endpointurl"),
            region=remote.get("region"),
            access_key=remote.get("access_key_id"),
            secret_key=remote.get("secret_access_key"),
            session_token=remote.get("session_token"),
            profile=remote.get("profile"),
        ),
    )


def tracking_store(machine: Machine) -> list[Finding]:
    """Does the MLflow store answer, and is its schema the installed one's?"""
    try:
        store = locate()
    except UserError as error:
        return [
            problem(
                str(error), "Nothing can be tracked or registered.", "unset MLFLOW_TRACKING_URI"
            )
        ]
    if store.database is not None:
        return [tracking.local_file(store.database)]
    address = urlsplit(store.uri)
    if address.scheme in ("http", "https"):
        user = address.username or machine.environment.get("MLFLOW_TRACKING_USERNAME")
        password = address.password or machine.environment.get("MLFLOW_TRACKING_PASSWORD", "")
        login = (user, password) if user else None
        mend = "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=..."
        return [tracking.server(store.shown + address.path, login, mend)]
    return [tracking.database(store)]


def _read_config(folder: Path) -> dict[str, dict[str, str]]:
    """Read DVC's configuration of a repository; ``config.local`` goes before ``config``."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read([folder / "config", folder / "config.local"], encoding="utf-8")
    return {
        name.strip("'"): {key: value.strip("\"'") for key, value in parser[name].items()}
        for name in parser.sections()
    }


def _num_files(folder: Path) -> int:
    return sum(1 for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0
