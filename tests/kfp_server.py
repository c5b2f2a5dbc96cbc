"""A KFP server (API v2beta1) with a Kubernetes behind it, in this process, for the real clients.

It keeps what it is sent and answers as KFP 2.17 does as far as our commands can tell: names are
unique, filters work, a run's tasks come with KFP's own drivers among them, times that have not come
are in 1970, a single-user server refuses namespaces. A run makes one step of progress each time it
is asked for. Faults are planned ahead: a status, or a connection dropped before or after the work.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

NEVER = "1970-01-01T00:00:00Z"
STEPS = ("prepare", "validate", "experts", "prealign", "prealign", "pretrain", "sft", "eval",
         "register", "finalize")  # fmt: skip
"""What a run goes through: a recipe with two experts."""


@dataclass
class Fault:
    """Something that goes wrong with the next requests to an address."""

    method: str
    path: str
    """Regular expression over the path."""
    what: int | Literal["drop before", "drop after"]
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """One run: what was asked for, and how far it is."""

    body: dict[str, Any]
    state: str = "PENDING"
    progress: int = 0
    fail_at: int | None = None

    def advance(self) -> None:
        """Go one step on."""
        if self.state == "CANCELING":
            self.state = "CANCELED"
        elif self.state in ("PENDING", "RUNNING"):
            self.state = "RUNNING"
            self.progress += 1
            if self.fail_at is not None and self.progress > self.fail_at:
                self.state = "FAILED"
            elif self.progress > len(STEPS):
                self.state = "SUCCEEDED"

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks that have begun, each with its driver, and the graph around them."""
        found = [self._task("root", 0, "RUNNING"), self._task("exit-handler-1", 0, "RUNNING")]
        for index, name in enumerate(STEPS[: self.progress]):
            state = "SUCCEEDED" if index + 1 < self.progress else "RUNNING"
            if index + 1 == self.progress and self.state in ("FAILED", "CANCELED"):
                state = self.state
            found.append(self._task(f"{name}-driver", index, "SUCCEEDED"))
            found.append(self._task(name, index, state))
        return found

    def pods(self) -> list[tuple[str, str, bool]]:
        """Return name, step and whether it has ended of every pod."""
        short = self.body["run_id"][:4]
        ended = self.state not in ("PENDING", "RUNNING")
        return [
            (f"run-{short}-{index:06d}", name, index + 1 < self.progress or ended)
            for index, name in enumerate(STEPS[: self.progress])
        ]

    def _task(self, name: str, index: int, state: str) -> dict[str, Any]:
        start = datetime.datetime(2026, 11, 21, 8, index, tzinfo=datetime.UTC)
        end = start + datetime.timedelta(seconds=50)
        task: dict[str, Any] = {
            "run_id": self.body["run_id"],
            "task_id": f"{name}-{index}",
            "display_name": name,
            "create_time": start.isoformat(),
            "start_time": start.isoformat(),
            "end_time": NEVER if state == "RUNNING" else end.isoformat(),
            "state": state,
        }
        if state == "FAILED":
            task["error"] = {"code": 2, "message": "exit code 1"}
        return task


class KfpServer:
    """The server and everything it knows."""

    def __init__(self, *, token: str | None = None, multi_user: bool = True) -> None:
        self.token = token
        self.multi_user = multi_user
        self.fail_at: int | None = None
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        """Version name to the very bytes of the file."""
        self.runs: dict[str, Run] = {}
        self.logs: dict[str, list[str]] = {}
        """Pod to its lines; each look at a pod that runs adds one."""
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"kfp": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> KfpServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def count(self, pattern: str) -> int:
        """Return how many requests matched, such as ``POST .*/runs``."""
        return sum(1 for line in self.requests if re.fullmatch(pattern, line))

    # ---- answers: status and JSON ----------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        """Find who answers a request."""
        for pattern, name in ROUTES.items():
            wanted, _, route = pattern.partition(" ")
            match = re.fullmatch(route, path)
            if wanted == method and match:
                return getattr(self, name)(*match.groups(), query=query, body=body)
        return 404, {"code": 12, "message": f"no route {method} {path}"}

    def health(self, **_: Any) -> Any:
        return 200, {"multi_user": self.multi_user}

    def list_experiments(self, *, query: dict[str, str], **_: Any) -> Any:
        return self._check_namespace(query.get("namespace")) or (
            200, {"experiments": _filtered(self.experiments, query)}
        )  # fmt: skip

    def create_experiment(self, *, body: bytes, **_: Any) -> Any:
        return self._create(self.experiments, "experiment_id", json.loads(body))

    def list_pipelines(self, *, query: dict[str, str], **_: Any) -> Any:
        return self._check_namespace(query.get("namespace")) or (
            200, {"pipelines": _filtered(self.pipelines, query)}
        )  # fmt: skip

    def create_pipeline(self, *, body: bytes, **_: Any) -> Any:
        return self._create(self.pipelines, "pipeline_id", json.loads(body))

    def list_versions(self, pipeline: str, *, query: dict[str, str], **_: Any) -> Any:
        mine = {key: one for key, one in self.versions.items() if one["pipeline_id"] == pipeline}
        return 200, {"pipeline_versions": _filtered(mine, query)}

    def upload_version(self, *, query: dict[str, str], body: bytes) -> Any:
        if query["pipelineid"] not in self.pipelines:
            return 404, {"code": 5, "message": "Pipeline not found"}
        made = {
            "display_name": query["display_name"],
            "name": query["name"],
            "pipeline_id": query["pipelineid"],
            "description": query.get("description", ""),
            "tags": json.loads(query.get("tags", "{}")),
        }
        answer = self._create(self.versions, "pipeline_version_id", made)
        if answer[0] == 200:
            self.uploads[query["name"]] = body
        return answer

    def list_runs(self, *, query: dict[str, str], **_: Any) -> Any:
        known = {key: run.body for key, run in self.runs.items()}
        mine = {
            key: one for key, one in known.items()
            if one["experiment_id"] == query.get("experiment_id", one["experiment_id"])
        }  # fmt: skip
        return 200, {"runs": _filtered(mine, query)}

    def create_run(self, *, body: bytes, **_: Any) -> Any:
        made = json.loads(body)
        reference = made["pipeline_version_reference"]
        if reference["pipeline_version_id"] not in self.versions:
            return 404, {"code": 5, "message": "PipelineVersion not found"}
        made |= {"run_id": str(uuid.uuid4()), "created_at": "2026-11-21T08:00:00Z"}
        self.runs[made["run_id"]] = Run(made, fail_at=self.fail_at)
        return 200, made

    def get_run(self, run: str, **_: Any) -> Any:
        if run not in self.runs:
            return 404, {"code": 5, "message": f"Run {run} not found", "details": []}
        found = self.runs[run]
        found.advance()
        ended = found.state in ("SUCCEEDED", "FAILED", "CANCELED")
        return 200, {
            **found.body,
            "state": found.state,
            "finished_at": "2026-11-21T09:00:00Z" if ended else NEVER,
            "run_details": {"task_details": found.tasks()},
        }

    def terminate(self, run: str, **_: Any) -> Any:
        if run not in self.runs:
            return 404, {"code": 5, "message": f"Run {run} not found"}
        self.runs[run].state = "CANCELING"
        return 200, {}

    def list_pods(self, namespace: str, *, query: dict[str, str], **_: Any) -> Any:
        labels = dict(part.split("=") for part in query["labelSelector"].split(","))
        assert labels["app.kubernetes.io/part-of"] == "manyeyes"
        run = self.runs.get(labels["pipeline/runid"])
        step = labels.get("app.kubernetes.io/component")
        pods = [] if run is None else [one for one in run.pods() if step in (None, one[1])]
        return 200, {
            "kind": "PodList",
            "apiVersion": "v1",
            "metadata": {},
            "items": [_pod(namespace, *pod) for pod in pods],
        }

    def pod_log(self, _namespace: str, pod: str, *, query: dict[str, str], **_: Any) -> Any:
        assert query["container"] == "main"
        assert query["timestamps"] == "True" or query["timestamps"] == "true"
        lines = self.logs.setdefault(pod, [])
        number = len(lines) + 1
        now = datetime.datetime.now(datetime.UTC)
        lines.append(f"{now:%Y-%m-%dT%H:%M:%S.%f}{number:03d}Z line {number}")
        return 200, "\n".join(lines) + "\n"

    # ----------------------------------------------------------------------------------------------

    def _create(self, known: dict[str, dict[str, Any]], key: str, made: dict[str, Any]) -> Any:
        refusal = self._check_namespace(made.get("namespace"), needed=key != "pipeline_version_id")
        if refusal:
            return refusal
        if any(one["display_name"] == made["display_name"] for one in known.values()):
            return 409, {"code": 6, "message": f"The name {made['display_name']} already exists"}
        made[key] = str(uuid.uuid4())
        known[made[key]] = made
        return 200, made

    def _check_namespace(self, namespace: str | None, *, needed: bool = True) -> Any:
        if namespace and not self.multi_user:
            return 400, {"code": 3, "message": "In single-user mode, namespace must be empty."}
        if not namespace and self.multi_user and needed:
            return 400, {"code": 3, "message": "In multi-user mode, namespace is needed."}
        return None


ROUTES = {
    "GET /apis/v2beta1/healthz": "health",
    "GET /apis/v2beta1/experiments": "list_experiments",
    "POST /apis/v2beta1/experiments": "create_experiment",
    "GET /apis/v2beta1/pipelines": "list_pipelines",
    "POST /apis/v2beta1/pipelines": "create_pipeline",
    "GET /apis/v2beta1/pipelines/([^/]+)/versions": "list_versions",
    "POST /apis/v2beta1/pipelines/upload_version": "upload_version",
    "GET /apis/v2beta1/runs": "list_runs",
    "POST /apis/v2beta1/runs": "create_run",
    "GET /apis/v2beta1/runs/([^/:]+)": "get_run",
    "POST /apis/v2beta1/runs/([^/:]+):terminate": "terminate",
    "GET /api/v1/namespaces/([^/]+)/pods": "list_pods",
    "GET /api/v1/namespaces/([^/]+)/pods/([^/]+)/log": "pod_log",
}


class _Handler(BaseHTTPRequestHandler):
    kfp: KfpServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._respond("GET")

    def do_POST(self) -> None:
        self._respond("POST")

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _respond(self, method: str) -> None:
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        self.kfp.requests.append(f"{method} {address.path}")
        fault = self._fault(method, address.path)
        if fault is not None and fault.what == "drop before":
            return self._drop()
        if fault is not None and isinstance(fault.what, int):
            return self._send(fault.what, {"code": 13, "message": "planned."}, fault.headers)
        token, given = self.kfp.token, self.headers.get("Authorization")
        if token and address.path.startswith("/apis/") and given != f"Bearer {token}":
            return self._send(401, {"code": 16, "message": "Unauthenticated"})
        if "multipart" in self.headers.get("Content-Type", ""):
            body = _file(self.headers["Content-Type"], body)
        status, answer = self.kfp.answer(method, address.path, query, body)
        if fault is not None:
            return self._drop()
        return self._send(status, answer)

    def _fault(self, method: str, path: str) -> Fault | None:
        for fault in self.kfp.faults:
            if fault.times and fault.method == method and re.fullmatch(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        plain = isinstance(answer, str)
        data = answer.encode() if plain else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if plain else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _filtered(known: dict[str, dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    """Apply the one filter our commands use: equal to a string."""
    found = list(known.values())
    for predicate in json.loads(query.get("filter", "{}")).get("predicates", []):
        assert predicate["operation"] == 1
        found = [one for one in found if one[predicate["key"]] == predicate["stringValue"]]
    return found


def _file(content_type: str, body: bytes) -> bytes:
    """Return the bytes of the only file of a multipart body."""
    boundary = content_type.split("boundary=")[1].strip('"').encode()
    (part,) = body.split(b"--" + boundary)[1:-1]
    head, _, content = part.partition(b"\r\n\r\n")
    assert b'name="uploadfile"' in head
    return content.removesuffix(b"\r\n")


def _pod(namespace: str, name: str, step: str, ended: bool) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": "2026-11-21T08:00:00Z",
            "labels": {
                "app.kubernetes.io/component": step,
                "app.kubernetes.io/part-of": "manyeyes",
            },
        },
        "spec": {"containers": [{"name": "main"}]},
        "status": {"phase": "Succeeded" if ended else "Running"},
    }
