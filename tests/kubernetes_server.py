"""An in-process HTTP server that behaves like the Kubernetes API, for the real client.

What it keeps faith with: optimistic concurrency and ``resourceVersion``, list and watch (initial
events, bookmarks, 410 after ``compact``), label and field selectors, merge and JSON patches (and
415 for a strategic merge patch of a custom object), deletion with preconditions and garbage
collection by owner, logs with ``sinceTime`` and ``follow``, access reviews, discovery, bearer
tokens that expire. ``fail`` plans what goes wrong. What happens in the cluster (a controller, a
scheduler, a kubelet) is played by the test, through ``create``, ``change``, ``delete``, ``log`` and
the shared clock.

    with KubernetesServer() as server:
        server.create("namespaces", {"metadata": {"name": "research"}})
        server.write_kubeconfig(tmp_path / "config")
"""

from __future__ import annotations

import copy
import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kubernetes_http import ApiError, Handler
from simulated_clock import SimulatedClock

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """One kind the API serves."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


RESOURCES = (
    Resource("", "v1", "namespaces", "Namespace", namespaced=False),
    Resource("", "v1", "nodes", "Node", namespaced=False),
    Resource("", "v1", "pods", "Pod"),
    Resource("", "v1", "events", "Event"),
    Resource("", "v1", "secrets", "Secret"),
    Resource("", "v1", "configmaps", "ConfigMap"),
    Resource("", "v1", "serviceaccounts", "ServiceAccount"),
    Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Resource("", "v1", "resourcequotas", "ResourceQuota"),
    Resource("apps", "v1", "deployments", "Deployment"),
    Resource("argoproj.io", "v1alpha1", "workflows", "Workflow"),
    Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob"),
    Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime"),
    Resource(
        "trainer.kubeflow.org",
        "v1alpha1",
        "clustertrainingruntimes",
        "ClusterTrainingRuntime",
        namespaced=False,
    ),
    Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet"),
    Resource("kueue.x-k8s.io", "v1beta1", "localqueues", "LocalQueue"),
    Resource("kueue.x-k8s.io", "v1beta1", "workloads", "Workload"),
    Resource("kueue.x-k8s.io", "v1beta1", "clusterqueues", "ClusterQueue", namespaced=False),
    Resource("kueue.x-k8s.io", "v1beta1", "resourceflavors", "ResourceFlavor", namespaced=False),
    Resource(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        namespaced=False,
    ),
)


@dataclass
class Fault:
    """Something that goes wrong, ``times`` times, with requests that match."""

    verb: str
    """get, list, watch, create, update, patch, delete, log; or ``*``."""
    plural: str
    """Or ``*``."""
    what: int | str
    """A status code; ``drop``: the connection breaks before an answer; ``cut``: amid a stream;
    ``gone``: a watch's stream says 410; ``lost``: the request is carried out, its answer lost."""
    times: int = 1
    retry_after: int | None = None


@dataclass(frozen=True)
class Change:
    """One line of the server's history, from which watches are served."""

    version: int
    kind: str
    resource: Resource
    object: Object


@dataclass
class KubernetesServer:
    """The cluster's memory, and the HTTP server in front of it."""

    clock: SimulatedClock = field(default_factory=SimulatedClock)
    version: str = "v1.34.1"
    resources: tuple[Resource, ...] = RESOURCES
    denied: set[tuple[str, str, str]] = field(default_factory=set)
    """(verb, group, resource) that an access review refuses and a request gets 403 for; the
    resource of a pod's log is ``pods/log``."""
    denied_others: set[tuple[str, str, str]] = field(default_factory=set)
    """The same for reviews on behalf of anybody but ``user``."""
    user: str = "ada"
    """Whose token it is."""
    deletion_seconds: float = 0.0
    """How long an object stays, marked, after its deletion was asked for."""
    skew_seconds: float = 0.0
    """How far the ``Date`` header of answers is ahead of the local clock."""
    short_watches: bool = False
    """End a watch after its first news, as a server may: the clock, which a watch lets run, then
    stands still until the client has reacted."""
    break_streams: bool = False
    """Set by an action: the stream that lets the clock run breaks now."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(verb, resource, name) of all requests."""
    logs: dict[tuple[str, str], list[tuple[datetime, str]]] = field(default_factory=dict)
    on_create: dict[str, Callable[[Object], None]] = field(default_factory=dict)
    """Plural to what a controller does when one appears; raises ApiError as an admission hook."""
    on_change: dict[str, Callable[[Object], None]] = field(default_factory=dict)
    """Plural to what a controller does when a client patched or replaced one."""

    def __post_init__(self) -> None:
        self.lock = self.clock.lock  # one lock: the clock's actions change objects
        self.history: list[Change] = []
        self.oldest = 0
        self.faults: list[Fault] = []
        self.token = "token-1"
        self.token_file: Path | None = None
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._version = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.cluster = self
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def __enter__(self) -> KubernetesServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def write_kubeconfig(self, path: Path, namespace: str = "research") -> Path:
        """Write a kubeconfig that reads its token from a file beside it."""
        self.token_file = path.with_suffix(".token")
        self.token_file.write_text(self.token)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"tokenFile": str(self.token_file)}}],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": "test", "namespace": namespace},
                }
            ],
        }
        path.write_text(json.dumps(config))
        return path

    def expire_token(self, *, renewed: bool = True) -> None:
        """Refuse the present token; when ``renewed``, write its successor where clients look."""
        self.token = f"token-{int(self.token.split('-')[1]) + 1}"
        if renewed and self.token_file is not None:
            self.token_file.write_text(self.token)

    def fail(
        self,
        verb: str,
        plural: str,
        what: int | str,
        times: int = 1,
        retry_after: int | None = None,
    ) -> None:
        """Plan a fault for the next matching requests."""
        self.faults.append(Fault(verb, plural, what, times, retry_after))

    def take_fault(self, verb: str, plural: str, *, only: tuple[str, ...] = ()) -> Fault | None:
        """Return the fault that meets this request, and count it."""
        with self.lock:
            for fault in self.faults:
                if (
                    fault.times > 0
                    and fault.verb in (verb, "*")
                    and fault.plural in (plural, "*")
                    and (fault.what in only if only else fault.what not in ("cut", "gone", "lost"))
                ):
                    fault.times -= 1
                    return fault
        return None

    def compact(self) -> None:
        """Forget the history: a watch from an older version gets 410 Gone."""
        with self.lock:
            self._version += 1
            self.oldest = self._version
            self.history.clear()

    def resource(self, plural: str) -> Resource:
        return next(found for found in self.resources if found.plural == plural)

    def all(self, plural: str, namespace: str = "") -> list[Object]:
        """Return copies of what there is, ordered by name."""
        with self.lock:
            return [
                copy.deepcopy(kept)
                for (kind, space, _), kept in sorted(self._objects.items())
                if kind == plural and namespace in ("", space)
            ]

    def get(self, plural: str, name: str, namespace: str = "research") -> Object:
        """Return a copy of one object.

        Raises:
            ApiError: 404.
        """
        with self.lock:
            return copy.deepcopy(self._find(plural, name, namespace))

    def create(self, plural: str, given: Object, namespace: str = "research") -> Object:
        """Store a new object and let its controller see it.

        Raises:
            ApiError: 409 when the name is taken, 422 for an object without a name.
        """
        resource = self.resource(plural)
        with self.lock:
            kept = copy.deepcopy(given)
            meta = kept.setdefault("metadata", {})
            if "name" not in meta and "generateName" in meta:
                meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
            if not meta.get("name"):
                raise ApiError(422, "Invalid", f"{resource.kind}: metadata.name is required")
            key = self._key(resource, meta["name"], namespace)
            if key in self._objects:
                message = f'{plural}.{resource.group} "{meta["name"]}" already exists'
                raise ApiError(409, "AlreadyExists", message)
            kept |= {"apiVersion": resource.api_version, "kind": resource.kind}
            if resource.namespaced:
                meta["namespace"] = namespace
            meta.setdefault("uid", str(uuid.uuid4()))
            meta.setdefault("creationTimestamp", self._date())
            hook = self.on_create.get(plural)
            self._store("ADDED", resource, key, kept)
            try:
                if hook is not None:
                    hook(copy.deepcopy(kept))
            except ApiError:
                del self._objects[key]
                self.history.pop()
                raise
            return copy.deepcopy(self._objects.get(key, kept))

    def change(
        self,
        plural: str,
        name: str,
        edit: Callable[[Object], None],
        namespace: str = "research",
        *,
        by_client: bool = False,
    ) -> Object:
        """Edit an object in place.

        Raises:
            ApiError: 404.
        """
        with self.lock:
            kept = copy.deepcopy(self._find(plural, name, namespace))
            edit(kept)
            resource = self.resource(plural)
            self._store("MODIFIED", resource, self._key(resource, name, namespace), kept)
            if by_client and plural in self.on_change:
                self.on_change[plural](copy.deepcopy(kept))
            return copy.deepcopy(kept)

    def delete(self, plural: str, name: str, namespace: str = "research") -> Object:
        """Delete an object and everything it owns, at once or after ``deletion_seconds``.

        Raises:
            ApiError: 404.
        """
        with self.lock:
            kept = self._find(plural, name, namespace)
            if not self.deletion_seconds:
                self._remove(plural, name, namespace)
                return copy.deepcopy(kept)
            if "deletionTimestamp" not in kept["metadata"]:
                uid = kept["metadata"]["uid"]

                def mark(marked: Object) -> None:
                    marked["metadata"]["deletionTimestamp"] = self._date()

                def remove() -> None:
                    if any(found["metadata"]["uid"] == uid for found in self.all(plural)):
                        self._remove(plural, name, namespace)

                self.change(plural, name, mark, namespace)
                self.clock.at(self.deletion_seconds, remove)
            return self.get(plural, name, namespace)

    def log(self, pod: str, *lines: str, namespace: str = "research") -> None:
        """Let a pod write lines to its log."""
        kept = self.logs.setdefault((namespace, pod), [])
        kept.extend((self.clock.date(), line) for line in lines)

    def list_version(self) -> int:
        return self._version

    def _find(self, plural: str, name: str, namespace: str) -> Object:
        resource = self.resource(plural)
        key = self._key(resource, name, namespace)
        if key not in self._objects:
            kind = f"{plural}.{resource.group}" if resource.group else plural
            raise ApiError(404, "NotFound", f'{kind} "{name}" not found')
        return self._objects[key]

    def _remove(self, plural: str, name: str, namespace: str) -> None:
        resource = self.resource(plural)
        kept = self._find(plural, name, namespace)
        del self._objects[self._key(resource, name, namespace)]
        self._record("DELETED", resource, kept)
        uid = kept["metadata"]["uid"]
        for owned_plural, space, owned in list(self._objects):
            found = self._objects.get((owned_plural, space, owned))
            owners = found["metadata"].get("ownerReferences", []) if found else []
            if any(owner["uid"] == uid for owner in owners):
                self._remove(owned_plural, owned, space)

    def _store(
        self, kind: str, resource: Resource, key: tuple[str, str, str], kept: Object
    ) -> None:
        self._objects[key] = kept
        self._record(kind, resource, kept)

    def _record(self, kind: str, resource: Resource, kept: Object) -> None:
        self._version += 1
        kept["metadata"]["resourceVersion"] = str(self._version)
        self.history.append(Change(self._version, kind, resource, copy.deepcopy(kept)))

    def _date(self) -> str:
        return self.clock.date().strftime("%Y-%m-%dT%H:%M:%SZ")

    @staticmethod
    def _key(resource: Resource, name: str, namespace: str) -> tuple[str, str, str]:
        return (resource.plural, namespace if resource.namespaced else "", name)
