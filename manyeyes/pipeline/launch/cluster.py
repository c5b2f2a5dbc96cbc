"""What the launcher asks of Kubernetes: TrainJobs, pods, logs, events, Kueue's reasons."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from manyeyes.errors import UserError
from manyeyes.pipeline.launch.api import (
    CONFLICT,
    FORBIDDEN,
    NOT_FOUND,
    REQUEST_TIMEOUT,
    Api,
    Clients,
)
from manyeyes.pipeline.launch.objects import (
    EventView,
    PodView,
    RuntimeView,
    TrainJobView,
    WorkloadView,
)
from manyeyes.runtime.kubernetes import View

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

TRAINER_GROUP = "trainer.kubeflow.org"
TRAINER_VERSION = "v1alpha1"
KUEUE_GROUP = "kueue.x-k8s.io"
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
WORKLOAD_LABEL = "kueue.x-k8s.io/job-uid"
CONTAINER = "node"
MAX_LOG_BYTES = 8 * 2**20

V = TypeVar("V", bound=View)
Json = dict[str, Any]
"""An object as the client takes it and hands it out."""


class Cluster:
    """The launcher's view of one namespace."""

    def __init__(self, api: Api) -> None:
        """Name the namespace; no request is made yet."""
        self.api = api
        self._kueue_version: str | None = None

    def trainjobs(self, plural: str = "trainjobs") -> dict[str, str]:
        """Return the arguments by which the client finds objects of the trainer."""
        return {
            "group": TRAINER_GROUP,
            "version": TRAINER_VERSION,
            "namespace": self.api.namespace,
            "plural": plural,
        }

    def job(self, name: str) -> TrainJobView | None:
        """Return a TrainJob."""
        return self._one("trainjobs", name, TrainJobView)

    def runtime(self, name: str) -> RuntimeView | None:
        """Return a TrainingRuntime of the namespace."""
        return self._one("trainingruntimes", name, RuntimeView)

    def list_job(self, name: str) -> tuple[TrainJobView | None, str]:
        """Return a TrainJob, and the version from which it can be watched."""
        listed: Json = self.api.request(
            "list",
            "trainjobs",
            lambda clients: clients.custom.list_namespaced_custom_object(
                **self.trainjobs(), field_selector=f"metadata.name={name}"
            ),
        )
        jobs = [TrainJobView.model_validate(item) for item in listed["items"]]
        return (jobs[0] if jobs else None), str(listed["metadata"]["resourceVersion"])

    def create_job(self, manifest: Json) -> TrainJobView | None:
        """Create a TrainJob; None when the name is taken."""
        from kubernetes.client.rest import ApiException

        try:
            made = self.api.request(
                "create",
                "trainjobs",
                lambda clients: clients.custom.create_namespaced_custom_object(
                    **self.trainjobs(), body=manifest
                ),
            )
        except ApiException as error:
            if error.status == CONFLICT:
                return None
            raise
        return TrainJobView.model_validate(made)

    def patch_job(self, name: str, patch: Json) -> None:
        """Merge a patch: what other controllers wrote into the job stays."""
        self.api.request(
            "patch",
            "trainjobs",
            lambda clients: clients.custom.patch_namespaced_custom_object(
                **self.trainjobs(), name=name, body=patch
            ),
        )

    def delete_job(self, job: TrainJobView) -> None:
        """Delete this TrainJob with its pods; another one of its name stays."""
        from kubernetes.client.rest import ApiException

        body = {"propagationPolicy": "Background", "preconditions": {"uid": job.metadata.uid}}
        try:
            self.api.request(
                "delete",
                "trainjobs",
                lambda clients: clients.custom.delete_namespaced_custom_object(
                    **self.trainjobs(), name=job.metadata.name, body=body
                ),
            )
        except ApiException as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise

    def pods(self, job: str) -> list[PodView]:
        """Return the pods of a TrainJob, ordered by name."""
        found = self._list(
            "pods",
            PodView,
            lambda clients: clients.core.list_namespaced_pod(
                self.api.namespace,
                label_selector=f"{JOBSET_LABEL}={job}",
                _preload_content=False,
                _request_timeout=REQUEST_TIMEOUT,
            ),
        )
        return sorted(found, key=lambda pod: pod.metadata.name)

    def events(self, name: str) -> list[EventView]:
        """Return the events of the objects of one name."""
        return self._list(
            "events",
            EventView,
            lambda clients: clients.core.list_namespaced_event(
                self.api.namespace,
                field_selector=f"involvedObject.name={name}",
                _preload_content=False,
                _request_timeout=REQUEST_TIMEOUT,
            ),
        )

    def own_pod(self, name: str) -> PodView | None:
        """Return the pod this process runs in, if it may be seen."""
        from kubernetes.client.rest import ApiException

        try:
            answer = self.api.request(
                "get",
                "pods",
                lambda clients: clients.core.read_namespaced_pod(
                    name,
                    self.api.namespace,
                    _preload_content=False,
                    _request_timeout=REQUEST_TIMEOUT,
                ),
            )
        except (UserError, ApiException):
            return None
        return PodView.model_validate(_decode(answer))

    def log(self, pod: str, *, since: str | None = None, tail: int | None = None) -> str | None:
        """Return a pod's log with time stamps, or None when it cannot be had at present.

        Not repeated: it is read again a moment later, and fails for as long as its node is away.
        The client's own method lacks ``sinceTime``.

        Args:
            pod: name of the pod.
            since: leave out lines before this time, RFC 3339 in whole seconds.
            tail: only so many lines from the end.
        """
        from kubernetes.client.rest import ApiException
        from urllib3.exceptions import HTTPError

        query = {"timestamps": "true", "container": CONTAINER, "limitBytes": str(MAX_LOG_BYTES)}
        query |= {"sinceTime": since} if since else {}
        query |= {"tailLines": str(tail)} if tail else {}
        try:
            answer = self.api.clients.core.api_client.call_api(
                f"/api/v1/namespaces/{self.api.namespace}/pods/{pod}/log",
                "GET",
                query_params=list(query.items()),
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=REQUEST_TIMEOUT,
            )
            return str(answer.data.decode(errors="replace"))
        except ApiException as error:
            if error.status == FORBIDDEN:
                self.api.check("get", "pods/log", error)
            return None
        except (HTTPError, OSError):
            return None

    def workload(self, job: TrainJobView) -> WorkloadView | None:
        """Return Kueue's workload of a job, if there is one that may be seen."""
        from kubernetes.client.rest import ApiException

        try:
            listed: Json = self.api.request(
                "list",
                "workloads",
                lambda clients: clients.custom.list_namespaced_custom_object(
                    **self._workloads(clients),
                    label_selector=f"{WORKLOAD_LABEL}={job.metadata.uid}",
                ),
            )
        except (UserError, ApiException):
            return None  # it only says why; the launcher works without
        items = [WorkloadView.model_validate(item) for item in listed["items"]]
        return items[0] if items else None

    def activate_workload(self, name: str, *, active: bool) -> None:
        """Let Kueue stop a job and give its quota back, or queue it again."""
        self.api.request(
            "patch",
            "workloads",
            lambda clients: clients.custom.patch_namespaced_custom_object(
                **self._workloads(clients), name=name, body={"spec": {"active": active}}
            ),
        )

    def _one(self, plural: str, name: str, view: type[V]) -> V | None:
        from kubernetes.client.rest import ApiException

        try:
            found = self.api.request(
                "get",
                plural,
                lambda clients: clients.custom.get_namespaced_custom_object(
                    **self.trainjobs(plural), name=name
                ),
            )
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return view.model_validate(found)

    def _list(
        self, plural: str, view: type[V], send: Callable[[Clients], BaseHTTPResponse]
    ) -> list[V]:
        listed = self.api.request("list", plural, lambda clients: _decode(send(clients)))
        return [view.model_validate(item) for item in listed["items"]]

    def _workloads(self, clients: Clients) -> dict[str, str]:
        """Ask once which version of Kueue's API is served: it moved from v1beta1 to v1beta2."""
        if self._kueue_version is None:
            groups = clients.apis.get_api_versions().groups
            served = {group.name: group.preferred_version.version for group in groups}
            self._kueue_version = str(served.get(KUEUE_GROUP, "v1beta1"))
        return {
            "group": KUEUE_GROUP,
            "version": self._kueue_version,
            "namespace": self.api.namespace,
            "plural": "workloads",
        }


def _decode(answer: BaseHTTPResponse) -> Json:
    data: Json = json.loads(answer.data)
    return data
