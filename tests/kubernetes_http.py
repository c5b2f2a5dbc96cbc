"""The HTTP half of ``kubernetes_server``: paths, verbs, selectors, patches, streams."""

from __future__ import annotations

import copy
import json
import re
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from kubernetes_server import Fault, KubernetesServer, Resource

Object = dict[str, Any]
PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<part>[a-z]+))?$"
)
REVIEWS = {
    "selfsubjectaccessreviews": "authorization.k8s.io",
    "localsubjectaccessreviews": "authorization.k8s.io",
    "selfsubjectreviews": "authentication.k8s.io",
}
"""Questions that are put as objects: plural to group."""
WATCH_SECONDS = 1800.0
FOLLOW_SECONDS = 3600.0


class ApiError(Exception):
    """What the server answers instead of an object."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message

    def body(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": self.status,
            "reason": self.reason,
            "message": self.message,
        }


class BrokenConnectionError(Exception):
    """A planned fault closes the socket."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def log_message(self, *_: object) -> None:
        """Say nothing; ``cluster.requests`` has them."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.cluster.skew_seconds)

    @property
    def cluster(self) -> KubernetesServer:
        return self.server.cluster

    def _answer(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self._retry_after: int | None = None
        try:
            self._check_token()
            self._route(method, body)
        except ApiError as error:
            self._send(error.status, error.body())
        except (BrokenConnectionError, BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.cluster.token}":
            raise ApiError(401, "Unauthorized", "Unauthorized")

    def _route(self, method: str, body: Any) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        found = PATH.match(url.path)
        if found is None or not self._serves(found):
            self._discover(url.path)
            return
        if found["plural"] in REVIEWS:
            self._send(201, self._review(found["plural"], body))
            return
        resource = self.cluster.resource(found["plural"])
        name = unquote(found["name"] or "")
        namespace = found["namespace"] or ""
        verb = self._verb(method, name, found["part"])
        plural = "pods/log" if found["part"] == "log" else resource.plural
        given = body.get("metadata", {}).get("name", "") if isinstance(body, dict) else ""
        self.cluster.requests.append((verb, plural, name or given))
        if ("get" if verb == "log" else verb, resource.group, plural) in self.cluster.denied:
            raise ApiError(403, "Forbidden", f'User cannot {verb} resource "{plural}"')
        self._meet(self.cluster.take_fault(verb, resource.plural))
        lost = self.cluster.take_fault(verb, resource.plural, only=("lost",))
        self._lost = lost is not None
        self._serve(verb, resource, namespace, name, body)

    def _serves(self, found: re.Match[str]) -> bool:
        plurals = {(kept.group, kept.version, kept.plural) for kept in self.cluster.resources}
        plurals.update((group, "v1", plural) for plural, group in REVIEWS.items())
        return (found["group"] or "", found["version"] or "v1", found["plural"]) in plurals

    def _verb(self, method: str, name: str, part: str | None) -> str:
        if part == "log":
            return "log"
        if method == "GET":
            if self.query.get("watch") in ("true", "True", "1"):
                return "watch"
            return "get" if name else "list"
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]

    def _meet(self, fault: Fault | None) -> None:
        if fault is None:
            return
        if fault.what == "drop":
            raise BrokenConnectionError
        assert isinstance(fault.what, int)
        self._retry_after = fault.retry_after
        reasons = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
        raise ApiError(fault.what, reasons.get(fault.what, "Unknown"), "planned by the test")

    def _serve(self, verb: str, resource: Resource, namespace: str, name: str, body: Any) -> None:
        cluster = self.cluster
        match verb:
            case "watch":
                self._watch(resource, namespace)
            case "log":
                self._log(namespace, name)
            case "list":
                self._send(200, self._list(resource, namespace))
            case "get":
                self._send(200, cluster.get(resource.plural, name, namespace))
            case "create":
                self._send(201, cluster.create(resource.plural, body, namespace))
            case "update":
                self._send(200, self._replace(resource, namespace, name, body))
            case "patch":
                self._send(200, self._patch(resource, namespace, name, body))
            case "delete":
                self._precondition(resource, namespace, name, body)
                self._send(200, cluster.delete(resource.plural, name, namespace))

    def _list(self, resource: Resource, namespace: str) -> Object:
        with self.cluster.lock:
            items = [
                kept
                for kept in self.cluster.all(resource.plural, namespace)
                if self._selected(kept)
            ]
            version = str(self.cluster.list_version())
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": {"resourceVersion": version},
            "items": items,
        }

    def _selected(self, kept: Object) -> bool:
        labels = kept["metadata"].get("labels", {})
        return all(
            _holds(term, labels.get)
            for term in filter(None, self.query.get("labelSelector", "").split(","))
        ) and all(
            _holds(term, lambda key: _field(kept, key))
            for term in filter(None, self.query.get("fieldSelector", "").split(","))
        )

    def _replace(self, resource: Resource, namespace: str, name: str, body: Any) -> Object:
        given = body["metadata"].get("resourceVersion")

        def edit(kept: Object) -> None:
            if given is not None and given != kept["metadata"]["resourceVersion"]:
                message = f'Operation cannot be fulfilled on "{name}": it has been modified'
                raise ApiError(409, "Conflict", message)
            fixed = {key: kept["metadata"][key] for key in ("uid", "creationTimestamp")}
            kept.clear()
            kept.update(copy.deepcopy(body))
            kept["metadata"].update(fixed)

        return self.cluster.change(resource.plural, name, edit, namespace, by_client=True)

    def _patch(self, resource: Resource, namespace: str, name: str, body: Any) -> Object:
        kind = self.headers.get("Content-Type", "")
        if "strategic" in kind and resource.group.count(".") > 0:
            raise ApiError(415, "UnsupportedMediaType", "strategic merge patch of a custom object")

        if ("json-patch" in kind) != isinstance(body, list):
            raise ApiError(400, "BadRequest", "cannot unmarshal the patch")

        def edit(kept: Object) -> None:
            if "json-patch" in kind:
                _json_patch(kept, body)
            else:
                _merge(kept, body)

        return self.cluster.change(resource.plural, name, edit, namespace, by_client=True)

    def _precondition(self, resource: Resource, namespace: str, name: str, body: Any) -> None:
        wanted = ((body or {}).get("preconditions") or {}).get("uid")
        found = self.cluster.get(resource.plural, name, namespace)["metadata"]["uid"]
        if wanted is not None and wanted != found:
            message = f"Precondition failed: UID in precondition: {wanted}, in object: {found}"
            raise ApiError(409, "Conflict", message)

    def _watch(self, resource: Resource, namespace: str) -> None:
        cluster = self.cluster
        deadline = cluster.clock.now() + float(self.query.get("timeoutSeconds", WATCH_SECONDS))
        since = int(self.query.get("resourceVersion") or 0)
        if 0 < since < cluster.oldest:
            raise ApiError(410, "Expired", "too old resource version")
        self._begin_stream("application/json")
        self._told = False
        if since == 0:
            listed = self._list(resource, namespace)
            since = int(listed["metadata"]["resourceVersion"])
            for kept in listed["items"]:
                self._event("ADDED", kept)
        while True:
            since = self._tell(resource, namespace, since)
            self._break_stream(resource)
            if since < cluster.oldest:
                self._event("ERROR", ApiError(410, "Expired", "too old resource version").body())
                break
            if (cluster.short_watches and self._told) or not cluster.clock.step(deadline):
                break
        self._tell(resource, namespace, since)
        self._end_stream()

    def _break_stream(self, resource: Resource) -> None:
        cluster = self.cluster
        if cluster.break_streams:
            cluster.break_streams = False
            raise BrokenConnectionError
        if cluster.take_fault("watch", resource.plural, only=("cut",)):
            self.wfile.write(b'19\r\n{"type": "MODIFIED", "ob')
            raise BrokenConnectionError
        if cluster.take_fault("watch", resource.plural, only=("gone",)):
            cluster.compact()

    def _tell(self, resource: Resource, namespace: str, since: int) -> int:
        """Send what happened after version ``since``; return the last version."""
        with self.cluster.lock:
            news = [change for change in self.cluster.history if change.version > since]
        for change in news:
            space = change.object["metadata"].get("namespace", "")
            wanted = change.resource is resource and namespace in ("", space)
            if wanted and self._selected(change.object):
                self._event(change.kind, change.object)
                self._told = True
            since = change.version
        return since

    def _event(self, kind: str, kept: Object) -> None:
        self._chunk(json.dumps({"type": kind, "object": kept}) + "\n")

    def _log(self, namespace: str, name: str) -> None:
        pod = self.cluster.get("pods", name, namespace)
        container = self.query.get("container", "node")
        if pod.get("status", {}).get("phase", "Pending") == "Pending":
            message = f'container "{container}" in pod "{name}" is waiting to start'
            raise ApiError(400, "BadRequest", message)
        self._begin_stream("text/plain")
        sent = self._log_lines(namespace, name, 0)
        deadline = self.cluster.clock.now() + FOLLOW_SECONDS
        while self.query.get("follow") in ("true", "True", "1"):
            if self.cluster.take_fault("log", "pods", only=("cut",)):
                raise BrokenConnectionError
            if self._is_over(namespace, name) or not self.cluster.clock.step(deadline):
                break
            sent = self._log_lines(namespace, name, sent)
        self._end_stream()

    def _is_over(self, namespace: str, name: str) -> bool:
        try:
            pod = self.cluster.get("pods", name, namespace)
        except ApiError:
            return True
        return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")

    def _log_lines(self, namespace: str, name: str, sent: int) -> int:
        kept = self.cluster.logs.get((namespace, name), [])
        lines = kept[sent:]
        if sent == 0:
            if "sinceTime" in self.query:
                since = datetime.fromisoformat(self.query["sinceTime"])
                lines = [line for line in lines if line[0] >= since.replace(microsecond=0)]
            if "tailLines" in self.query:
                lines = lines[max(0, len(lines) - int(self.query["tailLines"])) :]
        for moment, text in lines:
            stamp = moment.strftime("%Y-%m-%dT%H:%M:%S.%f000Z ")
            prefix = stamp if self.query.get("timestamps") in ("true", "True") else ""
            self._chunk(f"{prefix}{text}\n")
        return len(kept)

    def _review(self, plural: str, body: Object) -> Object:
        if ("create", REVIEWS[plural], plural) in self.cluster.denied:
            raise ApiError(403, "Forbidden", f'User cannot create resource "{plural}"')
        if plural == "selfsubjectreviews":
            return {**body, "status": {"userInfo": {"username": self.cluster.user}}}
        asked = body["spec"].get("resourceAttributes", {})
        plural = asked.get("resource", "")
        if asked.get("subresource"):
            plural = f"{plural}/{asked['subresource']}"
        key = (asked.get("verb", ""), asked.get("group", ""), plural)
        user = body["spec"].get("user", self.cluster.user)
        denied = self.cluster.denied if user == self.cluster.user else self.cluster.denied_others
        allowed = key not in denied
        return {**body, "status": {"allowed": allowed, "reason": "" if allowed else "no rule"}}

    def _discover(self, path: str) -> None:
        groups: dict[str, str] = {kept.group: kept.version for kept in self.cluster.resources}
        parts = path.strip("/").split("/")
        if path.rstrip("/") == "/version":
            major, minor, _ = self.cluster.version.lstrip("v").split(".")
            info = {"major": major, "minor": minor, "gitVersion": self.cluster.version}
            rest = ["buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform"]
            info |= dict.fromkeys(rest, "")
            self._send(200, info)
        elif path.rstrip("/") == "/api":
            self._send(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path.rstrip("/") == "/apis":
            named = [_group(name, version) for name, version in groups.items() if name]
            self._send(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": named})
        elif parts[0] == "apis" and len(parts) == 2 and parts[1] in groups:
            self._send(200, {"kind": "APIGroup", **_group(parts[1], groups[parts[1]])})
        elif parts == ["api", "v1"] or (parts[0] == "apis" and len(parts) == 3):
            group = "" if parts[0] == "api" else parts[1]
            if groups.get(group) != parts[-1]:
                raise ApiError(404, "NotFound", "the server could not find the resource")
            self._send(200, self._resource_list(group, parts[-1]))
        elif path in ("/healthz", "/readyz", "/livez"):
            self._send(200, {})
        else:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")

    def _resource_list(self, group: str, version: str) -> Object:
        found = [
            {
                "name": kept.plural,
                "singularName": kept.kind.lower(),
                "namespaced": kept.namespaced,
                "kind": kept.kind,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            }
            for kept in self.cluster.resources
            if kept.group == group
        ]
        name = f"{group}/{version}" if group else version
        return {"kind": "APIResourceList", "groupVersion": name, "resources": found}

    def _send(self, status: int, body: Object) -> None:
        if getattr(self, "_lost", False):
            self._lost = False
            raise BrokenConnectionError
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self._retry_after is not None:
            self.send_header("Retry-After", str(self._retry_after))
        self.end_headers()
        self.wfile.write(data)

    def _begin_stream(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")


def _group(name: str, version: str) -> Object:
    served = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [served], "preferredVersion": served}


def _holds(term: str, value_of: Any) -> bool:
    if "!=" in term:
        key, value = term.split("!=", 1)
        return value_of(key) != value
    if "=" in term:
        key, value = re.split("==?", term, maxsplit=1)
        return value_of(key) == value
    return value_of(term) is not None


def _field(kept: Object, path: str) -> str | None:
    value: Any = kept
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _merge(kept: Object, patch: Object) -> None:
    """RFC 7386."""
    for key, value in patch.items():
        if value is None:
            kept.pop(key, None)
        elif isinstance(value, dict):
            if not isinstance(kept.get(key), dict):
                kept[key] = {}
            _merge(kept[key], value)
        else:
            kept[key] = value


def _json_patch(kept: Object, operations: list[Object]) -> None:
    """RFC 6902: add, replace, remove and test on objects."""
    for operation in operations:
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~")
            for part in operation["path"].lstrip("/").split("/")
        ]
        target: Any = kept
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        match operation["op"]:
            case "add" | "replace":
                target[last] = operation["value"]
            case "remove":
                del target[last]
            case "test":
                if target.get(last) != operation["value"]:
                    raise ApiError(422, "Invalid", f"test failed: {operation['path']}")
