"""What the pipeline talks to: the results' bucket, MLflow, the KFP API."""

from __future__ import annotations

import json
import os

from manyeyes.doctor import tracking
from manyeyes.doctor.bucket import TriedBucket, try_bucket
from manyeyes.doctor.cluster.api import Cluster, NoAnswerError, NotAllowedError, explained, refused
from manyeyes.doctor.cluster.secrets import STORAGE_KEYS, TRACKING_KEYS, values
from manyeyes.doctor.findings import Finding, ok, problem, unchecked
from manyeyes.doctor.web import UnreachableError, ask, is_inside_cluster
from manyeyes.store.bucket import S3Access


def storage(cluster: Cluster) -> list[Finding]:
    """Can the bucket be written, read and deleted from, with the pods' own keys?"""
    settings = cluster.profile.storage
    if settings.endpoint and is_inside_cluster(settings.endpoint):
        return [_inside(cluster, "The bucket", settings.endpoint)]
    login, keys = "the AWS identity of this shell", dict[str, str]()
    if settings.secret:
        found = _secret(cluster, settings.secret, STORAGE_KEYS)
        if isinstance(found, Finding):
            return [found]
        login, keys = found
    bucket = TriedBucket(
        name=settings.bucket,
        prefix=settings.prefix,
        login=login,
        access=S3Access(
            endpoint=settings.endpoint,
            region=settings.region,
            access_key=keys.get(STORAGE_KEYS[0]),
            secret_key=keys.get(STORAGE_KEYS[1]),
        ),
    )
    return [try_bucket(bucket)]


def mlflow(cluster: Cluster) -> list[Finding]:
    """Does the MLflow server answer, and let the pods' user in?"""
    settings = cluster.profile.tracking
    if is_inside_cluster(settings.uri):
        return [_inside(cluster, "MLflow", settings.uri)]
    login = None
    mend = "Give the profile tracking.secret, with " + " and ".join(TRACKING_KEYS)
    if settings.secret:
        found = _secret(cluster, settings.secret, TRACKING_KEYS)
        if isinstance(found, Finding):
            return [found]
        source, keys = found
        login = (keys[TRACKING_KEYS[0]], keys[TRACKING_KEYS[1]])
        mend = f"Write the right user and password into {source}"
    return [tracking.server(settings.uri, login, mend)]


@explained
def kubeflow(cluster: Cluster) -> list[Finding]:
    """Does the KFP API answer, and let us in?"""
    settings = cluster.profile.kubeflow
    if is_inside_cluster(settings.endpoint):
        return [_inside(cluster, "The KFP API", settings.endpoint)]
    url = f"{settings.endpoint.rstrip('/')}/apis/v2beta1/healthz"
    headers = {}
    if settings.token_variable:
        token = os.environ.get(settings.token_variable, "")
        if not token:
            what = f"{settings.token_variable} is not set."
            why = "It holds the token with which a run is submitted."
            return [problem(what, why, f"export {settings.token_variable}=...")]
        headers["Authorization"] = f"Bearer {token}"
    try:
        answer = ask(url, headers=headers)
    except UnreachableError as error:
        what = f"The KFP API at {settings.endpoint} does not answer: {error}."
        return [problem(what, "Nothing can be submitted.", f"curl -v {url}")]
    return [_kubeflow(settings.endpoint, settings.token_variable, answer.status, answer.body)]


def _kubeflow(endpoint: str, variable: str | None, status: int, body: bytes) -> Finding:
    why = "Nothing can be submitted."
    if status in (401, 403):
        who = f"the token in {variable}" if variable else "requests without a token"
        mend = (
            f"export {variable}=..." if variable else "Set kubeflow.token_variable of the profile"
        )
        return problem(f"The KFP API at {endpoint} refuses {who} ({status}).", why, mend)
    try:
        is_api = status == 200 and "multi_user" in json.loads(body)
    except (ValueError, TypeError):
        is_api = False
    if is_api:
        return ok(f"The KFP API at {endpoint} answers.")
    what = f"At {endpoint} something else than the KFP API answers ({status})."
    why += " It may be a login page, which a token passes."
    return problem(what, why, f"curl -v {endpoint.rstrip('/')}/apis/v2beta1/healthz")


def _secret(
    cluster: Cluster, name: str, keys: tuple[str, str]
) -> tuple[str, dict[str, str]] | Finding:
    """Return where keys come from and their values, or the finding that there are none to try.

    Whoever may not read secrets can have them in the environment, as the pods do.
    """
    try:
        found = values(cluster, name)
    except NotAllowedError as error:
        if all(os.environ.get(key) for key in keys):
            return "the keys of this shell", {key: os.environ[key] for key in keys}
        return refused(cluster, error)
    except NoAnswerError as error:
        return unchecked(f"No answer: {error}.", f"The secret {name} was to be tried.")
    if found is None or not all(found.get(key) for key in keys):
        return unchecked(
            "Not tried, for want of a user and password.",
            f"The secret {name} is missing or not complete.",
            "See the check 'secrets'",
        )
    return f"the secret {name}", found


def _inside(cluster: Cluster, what: str, address: str) -> Finding:
    profile = cluster.profile.name
    return unchecked(
        f"{what} at {address} was not tried.",
        "This name exists inside the cluster only; a pod there can try it.",
        f"manyeyes doctor --profile {profile} --pod | kubectl create -f -, then: "
        f"kubectl -n {cluster.namespace} logs -f manyeyes-doctor",
    )
