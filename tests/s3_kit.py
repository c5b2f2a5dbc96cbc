"""An S3 server in this process, for the requests the store makes, with faults on demand.

It keeps objects in memory, checks ``Content-MD5`` as S3 does, and does to the next matching
requests what ``fail`` was told.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@dataclass
class Fault:
    """What happens to the next ``times`` requests of a method whose path has ``part`` in it."""

    method: str
    part: str
    kind: str
    """``500``, ``503``, ``403``, ``refuse`` (no answer), ``drop`` (half the body), ``wrong``,
    ``slow`` (answered when ``released`` is set)."""
    times: int


@dataclass
class FakeS3:
    """The server's state, which tests may look at and change."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """``bucket/key`` to bytes."""
    buckets: set[str] = field(default_factory=lambda: {"team"})
    uploads: dict[str, tuple[str, dict[int, bytes]]] = field(default_factory=dict)
    """Upload id to the object's path and its parts."""
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    """Bytes of objects that GET answered."""
    lists_uploads: bool = True
    knows_ranges: bool = True
    page: int = 1000
    arrived: threading.Event = field(default_factory=threading.Event)
    """Set by the first request that is slow."""
    released: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, method: str, part: str, kind: str, times: int = 1) -> None:
        self.faults.append(Fault(method, part, kind, times))

    def fault(self, method: str, path: str) -> str:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.part in path and fault.times:
                    fault.times -= 1
                    return fault.kind
        return ""

    def count(self, method: str, part: str = "") -> int:
        return sum(1 for done, path in self.requests if done == method and part in path)

    def reset(self) -> None:
        """Forget everything but the port."""
        fresh = FakeS3(port=self.port)
        vars(self).update({**vars(fresh), "lock": self.lock})

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


STATUS = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FakeS3

    def log_message(self, *arguments) -> None:
        pass

    def begin(self) -> bool:
        """Read the request, and do what a fault says; say whether it shall be answered."""
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        self.address = urlsplit(self.path)
        self.query = {k: v[0] for k, v in parse_qs(self.address.query, True).items()}
        self.name = unquote(self.address.path).lstrip("/")
        self.state.requests.append((self.command, self.path))
        self.kind = self.state.fault(self.command, self.path)
        if self.kind == "refuse":
            self.close_connection = True
            self.connection.close()
            return False
        if self.kind == "slow":
            self.state.arrived.set()
            self.state.released.wait(600)
        if self.kind in STATUS:
            self.error(int(self.kind), STATUS[self.kind])
            return False
        if self.name.split("/")[0] not in self.state.buckets:
            self.error(404, "NoSuchBucket")
            return False
        return True

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        sent = body
        if self.kind == "wrong" and body:
            sent = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        length = headers.pop("length", str(len(body)))
        for name, value in {"Content-Length": length, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.kind == "drop":
            self.wfile.write(sent[: len(sent) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        elif self.command != "HEAD":
            self.wfile.write(sent)
            if self.command == "GET" and status < 300:
                with self.state.lock:
                    self.state.sent += len(sent)

    def error(self, status: int, code: str) -> None:
        self.kind = ""
        self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def xml(self, name: str, inside: str) -> None:
        self.answer(200, f'<{name} xmlns="{XMLNS}">{inside}</{name}>'.encode())

    def do_HEAD(self) -> None:
        if not self.begin():
            return
        data = self.state.objects.get(self.name)
        if data is None:
            self.answer(404)
        else:
            self.answer(200, length=str(len(data)), ETag=f'"{md5(data)}"')

    def do_GET(self) -> None:
        if not self.begin():
            return
        if "list-type" in self.query:
            self.list_objects()
        elif "uploads" in self.query:
            self.list_uploads()
        elif "uploadId" in self.query:
            self.list_parts()
        elif self.name not in self.state.objects:
            self.error(404, "NoSuchKey")
        else:
            data, span = self.state.objects[self.name], self.headers.get("Range")
            if span and self.state.knows_ranges:
                first, last = span.removeprefix("bytes=").split("-")
                if int(first) >= len(data):
                    self.error(416, "InvalidRange")
                    return
                part = data[int(first) : int(last) + 1]
                where = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
                self.answer(206, part, Content_Range=where, ETag=f'"{md5(data)}"')
            else:
                self.answer(200, data, ETag=f'"{md5(data)}"')

    def do_PUT(self) -> None:
        if not self.begin():
            return
        given = self.headers.get("Content-MD5")
        if given and base64.b64decode(given).hex() != md5(self.body):
            self.error(400, "BadDigest")
        elif "uploadId" in self.query:
            upload = self.state.uploads.get(self.query["uploadId"])
            if upload is None:
                self.error(404, "NoSuchUpload")
                return
            upload[1][int(self.query["partNumber"])] = self.body
            self.answer(200, ETag=f'"{md5(self.body)}"')
        elif "x-amz-copy-source" in self.headers:
            source = unquote(self.headers["x-amz-copy-source"]).lstrip("/")
            self.state.objects[self.name] = self.state.objects[source]
            self.xml("CopyObjectResult", f"<ETag>{md5(self.state.objects[source])}</ETag>")
        else:
            self.state.objects[self.name] = self.body
            self.answer(200, ETag=f'"{md5(self.body)}"')

    def do_POST(self) -> None:
        if not self.begin():
            return
        if "uploads" in self.query:
            upload = uuid.uuid4().hex
            self.state.uploads[upload] = (self.name, {})
            self.xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
            return
        upload = self.state.uploads.get(self.query["uploadId"])
        if upload is None:
            self.error(404, "NoSuchUpload")
            return
        parts, chosen = upload[1], []
        for part in ElementTree.fromstring(self.body).iter(f"{{{XMLNS}}}Part"):  # noqa: S314 - our own
            number = int(part.findtext(f"{{{XMLNS}}}PartNumber", "0"))
            if part.findtext(f"{{{XMLNS}}}ETag", "").strip('"') != md5(parts.get(number, b"")):
                self.error(400, "InvalidPart")
                return
            chosen.append(parts[number])
        self.state.objects[self.name] = b"".join(chosen)
        del self.state.uploads[self.query["uploadId"]]
        self.xml("CompleteMultipartUploadResult", "<ETag>x-1</ETag>")

    def do_DELETE(self) -> None:
        if self.begin():
            self.state.objects.pop(self.name, None)
            self.answer(204)

    def list_objects(self) -> None:
        bucket, prefix = self.name, self.query.get("prefix", "")
        keys = sorted(
            key.removeprefix(f"{bucket}/")
            for key in self.state.objects
            if key.startswith(f"{bucket}/{prefix}")
        )
        start = int(self.query.get("continuation-token", 0))
        shown = keys[start : start + self.state.page]
        more = start + len(shown) < len(keys)
        inside = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        if more:
            inside += f"<NextContinuationToken>{start + len(shown)}</NextContinuationToken>"
        inside += "".join(f"<Contents><Key>{escape(key)}</Key></Contents>" for key in shown)
        self.xml("ListBucketResult", inside)

    def list_uploads(self) -> None:
        if not self.state.lists_uploads:
            self.error(501, "NotImplemented")
            return
        prefix = f"{self.name}/{self.query.get('prefix', '')}"
        self.xml(
            "ListMultipartUploadsResult",
            "".join(
                f"<Upload><Key>{escape(path.split('/', 1)[1])}</Key><UploadId>{upload}</UploadId>"
                "<Initiated>2026-01-01T00:00:00Z</Initiated></Upload>"
                for upload, (path, _) in self.state.uploads.items()
                if path.startswith(prefix)
            ),
        )

    def list_parts(self) -> None:
        upload = self.state.uploads.get(self.query["uploadId"])
        if upload is None:
            self.error(404, "NoSuchUpload")
            return
        self.xml(
            "ListPartsResult",
            "<IsTruncated>false</IsTruncated>"
            + "".join(
                f"<Part><PartNumber>{number}</PartNumber><ETag>{md5(data)}</ETag>"
                f"<Size>{len(data)}</Size></Part>"
                for number, data in sorted(upload[1].items())
            ),
        )


def name_bucket(server, monkeypatch, place):
    """Empty a server, and let the environment name a bucket on it as the store."""
    server.reset()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MANYEYES_STORE", place)


@contextmanager
def fake_s3():
    """Run the server in a thread; yield its state."""
    state = FakeS3()
    handler = type("BoundHandler", (Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
