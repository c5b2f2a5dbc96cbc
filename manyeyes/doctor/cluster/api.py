"""The Kubernetes API, read through the real client: kubeconfig outside, service account inside.

Paths are asked for directly and answers checked with small models of what we read: one way for core
kinds and custom resources alike, and no typed client to import for each. Two errors end a check
early and are turned into findings by :func:`explained`: we may not look, or nobody answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from manyeyes.config.profile import ClusterProfile
from manyeyes.config.recipe import Recipe
from manyeyes.doctor.findings import Finding, unchecked
from manyeyes.runtime.kubernetes import View

SECONDS = (4.0, 8.0)
"""To connect, and between two bytes of an answer."""


Model = TypeVar("Model", bound=BaseModel)


class NotAllowedError(Exception):
    """403 or 401: we may not look."""

    def __init__(self, status: int, right: str) -> None:
        super().__init__(right)
        self.status = status
        self.right = right
        """In the words of ``kubectl auth can-i``."""


class NoAnswerError(Exception):
    """The API server is gone, or answers nonsense."""


@dataclass(frozen=True)
class Cluster:
    """What the cluster's checks look at."""

    profile: ClusterProfile
    recipe: Recipe | None
    client: Any
    """kubernetes.client.ApiClient."""

    @property
    def namespace(self) -> str:
        """Namespace of the steps and their jobs."""
        return self.profile.kubeflow.namespace

    @property
    def host(self) -> str:
        """URL of the API server."""
        return str(self.client.configuration.host)

    def in_namespace(self, api: str, plural: str, name: str = "") -> str:
        """Return a path in the profile's namespace; ``api`` is ``api/v1`` or ``apis/GROUP/V``."""
        path = f"/{api}/namespaces/{quote(self.namespace)}/{plural}"
        return f"{path}/{quote(name)}" if name else path

    def get(self, path: str, model: type[Model], right: str) -> Model | None:
        """Return one object or list, None when there is none.

        Args:
            path: of the API, with its query.
            model: what to read of it.
            right: what it takes to look, as ``kubectl auth can-i`` has it: ``list nodes``.

        Raises:
            NotAllowedError: we may not.
            NoAnswerError: no answer, or one that makes no sense.
        """
        return self._ask("GET", path, None, model, right)

    def post(self, path: str, body: dict[str, object], model: type[Model], right: str) -> Model:
        """Ask a question that is put as an object, such as an access review.

        Raises:
            NotAllowedError: we may not.
            NoAnswerError: no answer, or one that makes no sense.
        """
        answer = self._ask("POST", path, body, model, right)
        if answer is None:
            raise NoAnswerError(f"{path} is not served")
        return answer

    def _ask(
        self, method: str, path: str, body: object, model: type[Model], right: str
    ) -> Model | None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = self.client.call_api(
                path,
                method,
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=SECONDS,
            )
            return model.model_validate(answer)
        except ApiException as error:
            if error.status == 404:
                return None
            if error.status in (401, 403):
                raise NotAllowedError(error.status, right) from None
            raise NoAnswerError(f"the API server answered {error.status}") from None
        except ValidationError:
            raise NoAnswerError("the API server's answer has an unknown shape") from None
        except (HTTPError, OSError) as error:
            raise NoAnswerError(f"the connection failed ({type(error).__name__})") from None

    def version_of(self, group: str) -> str | None:
        """Return the version of an API group that the server prefers; None if it has no such."""
        found = self.get(f"/apis/{group}", _Group, "get --raw /apis")
        return found.preferred.version if found else None


class _GroupVersion(View):
    version: str


class _Group(View):
    preferred: _GroupVersion = Field(alias="preferredVersion")


Look = Callable[[Cluster], list[Finding]]


def explained(check: Look) -> Look:
    """Turn what ends a check early into a finding that says so."""

    @functools.wraps(check)
    def look(cluster: Cluster) -> list[Finding]:
        try:
            return check(cluster)
        except NotAllowedError as error:
            return [refused(cluster, error)]
        except NoAnswerError as error:
            return [
                unchecked(
                    f"No answer: {error}.",
                    "Without it nothing can be said.",
                    "Run the same command again.",
                )
            ]

    return look


def refused(cluster: Cluster, error: NotAllowedError) -> Finding:
    """Say what we were not allowed to see."""
    if error.status == 401:
        return unchecked(
            f"The API server does not know us when we {error.right}.",
            "The token of the kubeconfig is wrong or has expired.",
            "Log in again as your cluster wants it, then: kubectl auth whoami",
        )
    return unchecked(
        f"We may not {error.right}.",
        "Your rights in this cluster do not reach that far; somebody else's may.",
        f"kubectl -n {cluster.namespace} auth can-i {error.right}",
    )
