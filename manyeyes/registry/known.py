"""Which objects the registries refer to: all that were ever written to from this home.

``registries.jsonl`` has the address of each, without the password that may have been in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.runtime.home import home
from manyeyes.runtime.journal import append_line

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

FILE = "registries.jsonl"
DATABASE = "mlflow.db"


@dataclass(frozen=True)
class Registered:
    """One version of a model."""

    name: str
    """``models:/NAME/VERSION``, and its aliases."""
    directory: str
    """Name of its weights in the store."""
    digests: tuple[str, ...]
    """Content digests of the weights and, where the version has an alias, of what they were made
    from: data, experts, earlier stages, report."""


def remember(uri: str) -> None:
    """Write down that a registry was written to, once.

    The file under home is asked anyway, and moves with it.
    """
    uri = _without_password(uri)
    if uri in (*_read(), _own()):
        return
    path = home() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, {"uri": uri}, 0o600)


def known() -> list[str]:
    """Return the registries that were written to, and the one in use if there is any."""
    from manyeyes.tracking.store import locate

    found = dict.fromkeys(_read())
    if (home() / DATABASE).exists():
        found[_own()] = None
    with suppress(UserError):
        here = locate()
        if here.exists:
            found[_without_password(here.uri)] = None
    return list(found)


def versions(uri: str) -> list[Registered]:
    """Return every version of every model of a registry.

    Raises:
        ManyeyesError: it does not answer.
    """
    from manyeyes.tracking.store import Store, locate, reaching

    here = locate()
    store = here if _without_password(here.uri) == uri else Store(uri, None, home())
    if not store.exists:
        raise ManyeyesError(f"the registry {store.shown} does not answer (there is no such file)")
    from manyeyes.registry.versions import aliases_of

    found = []
    try:
        with reaching(store) as client:
            for model in client.search_registered_models():
                aliases = aliases_of(client, model.name)
                found += [
                    _registered(version, aliases.get(str(version.version), ()))
                    for version in client.search_model_versions(f"name = '{model.name}'")
                ]
    except ManyeyesError as error:
        raise ManyeyesError(f"the registry {store.shown} does not answer ({error})") from None
    return found


def _registered(version: ModelVersion, aliases: Iterable[str]) -> Registered:
    from manyeyes.registry.versions import PROVENANCE, Provenance, weights_of

    aliases = tuple(aliases)
    words = "".join(f" @{alias}" for alias in aliases)
    name = f"models:/{version.name}/{version.version}{words}"
    try:
        weights = weights_of(version)
        made = Provenance.model_validate_json(version.tags[PROVENANCE])
    except (ManyeyesError, ValueError):
        return Registered(name, "", ())  # somebody else's, whose weights are not in our store
    ancestors = (*made.data.values(), *made.experts.values(), *made.stages.values(), made.report)
    return Registered(name, weights.dir_id, (weights.digest, *(ancestors if aliases else ())))


def _read() -> list[str]:
    try:
        lines = (home() / FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    found: dict[str, None] = {}
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):
            found[str(json.loads(line)["uri"])] = None
    return list(found)


def forget(uris: Iterable[str]) -> None:
    """Drop registries that will not answer any more."""
    gone = set(uris)
    kept = [uri for uri in _read() if uri not in gone]
    path = home() / FILE
    if path.exists():
        atomic_write_text(path, "".join(json.dumps({"uri": uri}) + "\n" for uri in kept))


def _own() -> str:
    """Return the address of the registry that is used where no other is named."""
    from manyeyes.tracking import sqlite

    return sqlite.uri_of(home() / DATABASE)


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
