"""The checks of the API server itself: does it answer, and is its clock ours?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from manyeyes.doctor.cluster.api import SECONDS, Cluster, explained
from manyeyes.doctor.findings import Finding, ok, problem, unchecked, warning
from manyeyes.runtime.kubernetes import Named

SLIGHT_SKEW = 30.0
LARGE_SKEW = 300.0


@dataclass(frozen=True)
class Greeting:
    """What the API server says of itself."""

    version: str
    skew: float | None
    """Seconds that its clock is ahead of ours; None if it does not tell the time."""


def greet(cluster: Cluster) -> Greeting:
    """Ask for the version, and read the time off the answer.

    Raises:
        urllib3.exceptions.HTTPError: nobody answers.
        kubernetes.client.exceptions.ApiException: an answer other than 200.
    """
    start = time.time()
    body, _, headers = cluster.client.call_api(
        "/version",
        "GET",
        header_params={"Accept": "application/json"},
        response_type="object",
        auth_settings=["BearerToken"],
        _request_timeout=SECONDS,
    )
    middle = (start + time.time()) / 2
    date = headers.get("Date")
    # The header counts whole seconds: on average half a second has been cut off.
    skew = parsedate_to_datetime(date).timestamp() + 0.5 - middle if date else None
    return Greeting(str(body.get("gitVersion", "unknown")), skew)


def reach(cluster: Cluster) -> list[Finding]:
    """Does the API server answer?"""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        greeting = greet(cluster)
    except ApiException as error:
        if error.status in (401, 403):
            return [
                problem(
                    f"The API server {cluster.host} does not let us in ({error.status}).",
                    "The token of the kubeconfig is wrong or has expired.",
                    "Log in again as your cluster wants it, then: kubectl auth whoami",
                )
            ]
        return [_unreachable(cluster, f"it answered {error.status}")]
    except (HTTPError, OSError, ValueError) as error:
        return [_unreachable(cluster, type(error).__name__)]
    return [ok(f"Kubernetes {greeting.version} at {cluster.host}."), _clock(greeting.skew)]


def _unreachable(cluster: Cluster, reason: str) -> Finding:
    return problem(
        f"The API server {cluster.host} cannot be reached ({reason}).",
        "Nothing of the cluster can be checked, and nothing can be submitted.",
        "kubectl cluster-info, and check the address, VPN and proxy",
    )


def _clock(skew: float | None) -> Finding:
    """Judge how far our clock is from the API server's."""
    if skew is None:
        return unchecked(
            "The clocks were not compared.", "The API server's answer has no Date header."
        )
    seconds = round(abs(skew))
    if abs(skew) < SLIGHT_SKEW:
        return ok("This machine's clock and the API server's agree.")
    side = "behind" if skew > 0 else "ahead of"
    what = f"This machine's clock is {seconds} s {side} the API server's."
    why = (
        "Tokens seem expired or not yet valid, and beyond 15 minutes S3 refuses every request; "
        "times in logs and tracking do not fit together."
    )
    mend = "timedatectl set-ntp true"
    return (problem if abs(skew) >= LARGE_SKEW else warning)(what, why, mend)


@explained
def namespace(cluster: Cluster) -> list[Finding]:
    """Is there the namespace of the profile?"""
    name = cluster.namespace
    if cluster.get(f"/api/v1/namespaces/{name}", Named, f"get namespace/{name}"):
        return [ok(f"Namespace {name}.")]
    return [
        problem(
            f"There is no namespace {name}.",
            "All steps and jobs run there.",
            f"kubectl apply -k infra/kubernetes/overlays/{cluster.profile.name}",
        )
    ]
