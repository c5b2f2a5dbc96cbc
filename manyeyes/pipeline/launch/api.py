"""Requests to the Kubernetes API over a network that fails.

Every request is repeated: 429 after the time the server asks for, 5xx and broken connections with a
growing wait, 401 after the credentials were read again, because the tokens of pods are renewed on
disk. All of it ends after the ``policy``'s seconds. Creating is repeated too: when its first answer
was lost, the second one is 409, which the launcher handles in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from manyeyes.errors import ManyeyesError, UserError
from manyeyes.runtime.clock import Clock
from manyeyes.runtime.kubernetes import NoKubernetesError, connect
from manyeyes.runtime.retry import Retries, RetryPolicy

if TYPE_CHECKING:
    from kubernetes import client
    from kubernetes.client.rest import ApiException

POLICY = RetryPolicy(seconds=600.0, first=1.0, longest=30.0)
REQUEST_TIMEOUT = (10, 60)
"""Seconds to connect, and to wait for more of an answer."""
REPEATED = (401, 429, 500, 502, 503, 504)
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404
CONFLICT = 409
GONE = 410

T = TypeVar("T")


class UnreachableError(ManyeyesError):
    """The API gave no good answer for too long; nothing is known of what runs."""


@dataclass(frozen=True)
class Clients:
    """The real client's APIs."""

    custom: client.CustomObjectsApi
    core: client.CoreV1Api
    apis: client.ApisApi


def clients() -> Clients:
    """Connect with the kubeconfig, or as the pod we are in.

    Raises:
        UserError: there are no credentials.
    """
    from kubernetes import client

    try:
        api = connect()
    except NoKubernetesError as error:
        raise UserError(
            f"There are no credentials for the Kubernetes API: {error}. "
            "Set KUBECONFIG, or run in a pod with a service account."
        ) from None
    return Clients(client.CustomObjectsApi(api), client.CoreV1Api(api), client.ApisApi(api))


class Api:
    """One namespace of one cluster."""

    def __init__(
        self, namespace: str, clock: Clock, connect_to: Callable[[], Clients] = clients
    ) -> None:
        """Read the credentials; no request is made yet."""
        self.namespace = namespace
        self.clock = clock
        self.policy = POLICY
        self.clients = connect_to()
        self._connect = connect_to

    def request(self, verb: str, resource: str, send: Callable[[Clients], T]) -> T:
        """Send a request, again when it failed for a reason that may pass.

        Raises:
            UserError: it is not allowed.
            UnreachableError: there was no good answer for the policy's seconds.
            ApiException: any other refusal.
        """
        from kubernetes.client.rest import ApiException
        from urllib3.exceptions import HTTPError

        retries = Retries(self.policy, self.clock)
        while True:
            try:
                return send(self.clients)
            except ApiException as error:
                self.check(verb, resource, error)
                trouble, asked = f"{error.status} {error.reason}", retry_after(error.headers)
            except (HTTPError, OSError) as error:
                trouble, asked = type(error).__name__, None
            if not retries.wait(asked):
                raise UnreachableError(
                    f"The Kubernetes API did not answer for {self.policy.seconds:.0f} s "
                    f"({trouble}, to {verb} {resource}); what runs in namespace {self.namespace} "
                    "goes on, run the same command again to take it up."
                )

    def check(self, verb: str, resource: str, error: ApiException) -> None:
        """Raise an answer that will not change by itself; renew the credentials after a 401.

        Raises:
            UserError: the request is not allowed.
            ApiException: it was refused for another reason.
        """
        if error.status == FORBIDDEN:
            raise UserError(
                f"This service account may not {verb} {resource} in namespace {self.namespace}; "
                "apply the Role of infra/kubernetes, and see 'manyeyes doctor'."
            ) from None
        if error.status not in REPEATED:
            raise error
        if error.status == UNAUTHORIZED:
            self.clients = self._connect()


def retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Return the seconds a server asks to wait."""
    value = (headers or {}).get("Retry-After", "")
    return float(value) if value.isdigit() and int(value) else None
