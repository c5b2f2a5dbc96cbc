"""Kubernetes secrets: are they there, with the keys we use? Their values reach no finding."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from pydantic import Field

from manyeyes.doctor.cluster.api import Cluster, explained
from manyeyes.doctor.findings import Finding, ok, problem, warning
from manyeyes.runtime.kubernetes import View

STORAGE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
TRACKING_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
PULL_KEYS = (".dockerconfigjson",)


@dataclass(frozen=True)
class Wanted:
    """A secret that the profile names."""

    name: str
    keys: tuple[str, ...]
    why: str


class _Secret(View):
    data: dict[str, str] = Field(default_factory=dict, repr=False)


def wanted(cluster: Cluster) -> list[Wanted]:
    """Return the secrets of the profile."""
    profile = cluster.profile
    found = []
    if profile.storage.secret:
        why = "Steps and jobs read and write the results' bucket with it."
        found.append(Wanted(profile.storage.secret, STORAGE_KEYS, why))
    if profile.tracking.secret:
        why = "Steps record their runs in MLflow with it."
        found.append(Wanted(profile.tracking.secret, TRACKING_KEYS, why))
    why = "Steps read gated models with it."
    found += [Wanted(one.secret, (one.key,), why) for one in profile.secrets]
    why = "The nodes pull the images with it."
    found += [Wanted(name, PULL_KEYS, why) for name in profile.images.pull_secrets]
    return found


def values(cluster: Cluster, name: str) -> dict[str, str] | None:
    """Return a secret's values; None if there is no such. They must not leave the caller.

    Raises:
        NotAllowedError: we may not read it.
        NoAnswerError: no answer.
    """
    path = cluster.in_namespace("api/v1", "secrets", name)
    secret = cluster.get(path, _Secret, f"get secret/{name}")
    if secret is None:
        return None
    return {key: _decode(value) for key, value in secret.data.items()}


@explained
def secrets(cluster: Cluster) -> list[Finding]:
    """Are the profile's secrets there, with their keys?"""
    needed = wanted(cluster)
    if not needed:
        return [ok("The profile names no secrets.")]
    return [explained_one(cluster, secret) for secret in needed]


def explained_one(cluster: Cluster, secret: Wanted) -> Finding:
    """Judge one secret; that we may not read it does not keep the next from being judged."""
    return explained(lambda cluster: [_judge(cluster, secret)])(cluster)[0]


def _judge(cluster: Cluster, secret: Wanted) -> Finding:
    have = values(cluster, secret.name)
    if have is None:
        what = f"There is no secret {secret.name} in the namespace {cluster.namespace}."
        return problem(what, secret.why, _create(cluster, secret))
    missing = [key for key in secret.keys if not have.get(key)]
    if missing:
        what = f"The secret {secret.name} has no {' and no '.join(missing)}."
        return problem(what, secret.why, _create(cluster, secret))
    if secret.keys != PULL_KEYS:
        padded = [key for key in secret.keys if have[key] != have[key].strip()]
        if padded:
            return warning(
                f"The secret {secret.name} has white space around {' and '.join(padded)}.",
                "A line break at the end, as 'echo' writes it, is sent along and refused.",
                _create(cluster, secret),
            )
    return ok(f"Secret {secret.name} with {', '.join(secret.keys)}.")


def _create(cluster: Cluster, secret: Wanted) -> str:
    command = f"kubectl -n {cluster.namespace} create secret"
    if secret.keys == PULL_KEYS:
        server = cluster.profile.images.trainer.partition("/")[0]
        return (
            f"{command} docker-registry {secret.name} --docker-server={server} "
            "--docker-username=... --docker-password=..."
        )
    pairs = " ".join(f"--from-literal={key}=..." for key in secret.keys)
    return f"{command} generic {secret.name} {pairs}"


def registry_logins(text: str) -> dict[str, tuple[str, str]]:
    """Read host to user and password from the text of a ``.dockerconfigjson``; empty if broken."""
    try:
        entries = json.loads(text)["auths"].items()
        return {_host(address): _login(entry) for address, entry in entries}
    except (ValueError, KeyError, AttributeError, TypeError):
        return {}


def _login(entry: dict[str, str]) -> tuple[str, str]:
    if "auth" in entry:
        user, _, password = _decode(entry["auth"]).partition(":")
        return user, password
    return entry["username"], entry["password"]


def _host(address: str) -> str:
    return address.partition("://")[2].partition("/")[0] or address.partition("/")[0]


def _decode(value: str) -> str:
    try:
        return base64.b64decode(value).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
