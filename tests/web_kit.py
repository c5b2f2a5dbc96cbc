"""Small HTTP servers that behave like an S3 bucket, an image registry, MLflow and the KFP API."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


Reply = tuple[int, dict[str, str], bytes]


@contextmanager
def serving(answer: Callable[[Request], Reply]) -> Iterator[str]:
    """Serve ``answer`` on a port of this machine; yields ``127.0.0.1:PORT``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            headers = {key.lower(): value for key, value in self.headers.items()}
            request = Request(self.command, url.path, query, headers, self.rfile.read(length))
            status, given, body = answer(request)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **given}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            self._reply()

        def do_HEAD(self) -> None:
            self._reply()

        def do_PUT(self) -> None:
            self._reply()

        def do_DELETE(self) -> None:
            self._reply()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


S3_STATUS = {"NoSuchBucket": 404, "PermanentRedirect": 301, "SlowDown": 503}


@dataclass
class FakeBucket:
    """Keeps objects of one bucket; ``faults`` maps a method to the S3 error it gets."""

    name: str = "results"
    access_key: str = "key"
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    garbles: bool = False

    def answer(self, request: Request) -> Reply:
        if request.path.split("/")[1] != self.name:
            return self._error("NoSuchBucket")
        if f"Credential={self.access_key}/" not in request.headers.get("authorization", ""):
            return self._error("InvalidAccessKeyId")
        if request.method in self.faults:
            return self._error(self.faults[request.method])
        if request.path == f"/{self.name}":  # boto3 asks for the region after a redirection
            return self._error("AccessDenied")
        match request.method:
            case "PUT":
                self.objects[request.path] = request.body
                return 200, {"ETag": '"x"'}, b""
            case "DELETE":
                del self.objects[request.path]
                return 204, {}, b""
            case _:
                return 200, {}, b"other" if self.garbles else self.objects[request.path]

    def _error(self, code: str) -> Reply:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
        return S3_STATUS.get(code, 403), {"Content-Type": "application/xml"}, body.encode()


@dataclass
class FakeRegistry:
    """Serves manifests to holders of a token, which its token service gives to ``users``."""

    users: dict[str, str] | None = None
    """None: everybody gets a token."""
    manifests: set[str] = field(default_factory=set)
    scheme: str = "Bearer"
    realm: str | None = None
    seen: list[str] = field(default_factory=list)

    def answer(self, request: Request) -> Reply:
        self.seen.append(f"{request.method} {request.path}")
        login = request.headers.get("authorization", "")
        if request.path == "/token":
            if self.users is not None and not self._knows(login):
                return 401, {}, b"{}"
            token = {"token": f"for-{request.query['scope']}"}
            return 200, {"Content-Type": "application/json"}, json.dumps(token).encode()
        repository = request.path.removeprefix("/v2/").partition("/manifests/")[0]
        allowed = login == f"Bearer for-repository:{repository}:pull"
        if self.scheme == "Basic":
            allowed = self._knows(login)
        if not allowed:
            realm = self.realm or f"http://{request.headers['host']}/token"
            scope = f"repository:{repository}:pull"
            challenge = f'{self.scheme} realm="{realm}",service="registry",scope="{scope}"'
            return 401, {"WWW-Authenticate": challenge}, b""
        return (200 if request.path in self.manifests else 404), {}, b""

    def _knows(self, login: str) -> bool:
        if not login.startswith("Basic "):
            return False
        user, _, password = base64.b64decode(login[6:]).decode().partition(":")
        return (self.users or {}).get(user) == password


@dataclass
class FakeMlflow:
    """Answers health and the search of experiments."""

    login: tuple[str, str] | None = None
    status: int = 200

    def answer(self, request: Request) -> Reply:
        if request.path == "/health":
            return 200, {}, b"OK"
        given = request.headers.get("authorization", "")
        if self.login is not None:
            wanted = "Basic " + base64.b64encode(":".join(self.login).encode()).decode()
            if given != wanted:
                return 401, {}, b"unauthorized"
        return self.status, {"Content-Type": "application/json"}, b'{"experiments": []}'


@dataclass
class FakeKubeflow:
    """Answers the KFP API's health, or shows a login page."""

    token: str | None = None
    login_page: bool = False

    def answer(self, request: Request) -> Reply:
        if self.login_page:
            return 302, {"Location": "/dex/auth"}, b"<html>log in</html>"
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {}, b"no"
        return 200, {"Content-Type": "application/json"}, b'{"multi_user": false}'
