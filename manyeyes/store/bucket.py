"""A bucket and a prefix in it: the few S3 requests the store is made of, each with retries.

Design decisions:

- boto3's client alone, none of its managed transfers: those cannot resume, and compare no digest.
- Bytes that are sent carry their md5 (``Content-MD5``), which every S3 server checks before it
  stores anything, including those that do not know the newer checksum headers. These headers are
  therefore sent to AWS only: behind ``AWS_ENDPOINT_URL`` stands another server, for which the
  checksum mode is ``when_required``.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from manyeyes.errors import UserError
from manyeyes.runtime.retry import RetryPolicy
from manyeyes.store.retry import PATIENCE, StoreRequestError, keep_trying

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Result = TypeVar("Result")
Client: TypeAlias = Any
"""boto3 ships no types."""

SCHEME = "s3://"
CONNECTIONS = 32
CONNECT_SECONDS = 10
READ_SECONDS = 60


@dataclass(frozen=True)
class Address:
    """Where a store lies: ``s3://bucket/prefix``."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises:
            UserError: it names no bucket, or is no S3 address.
        """
        parts = urlsplit(text)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise UserError(
                f"{text!r} is not the address of a store: write s3://BUCKET/PREFIX in "
                "MANYEYES_STORE, or unset it to use a folder of this machine."
            )
        return cls(parts.netloc, parts.path.strip("/"))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


@dataclass(frozen=True)
class S3Access:
    """Where an S3 server is, and who asks it; what is not given, AWS's variables and files tell."""

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None


class Bucket:
    """The objects below one address. Safe for many threads."""

    def __init__(
        self, address: Address, client: Client | None = None, policy: RetryPolicy | None = None
    ) -> None:
        """Name the bucket; nothing is sent yet, and boto3 is not imported yet."""
        self.address = address
        self.policy = policy or PATIENCE
        self._client = client
        self._lock = threading.Lock()

    @property
    def client(self) -> Client:
        """The boto3 client, made when it is first needed: that costs half a second."""
        with self._lock:
            if self._client is None:
                self._client = _shared_client(_aws_variables())
            return self._client

    def request(self, call: Callable[[Client], Result]) -> Result:
        """Make a request, again while its failures may pass; repeating it must be harmless."""
        return keep_trying(self.policy, str(self.address), lambda: call(self.client))

    def where(self, key: str) -> dict[str, str]:
        """Return the request's names for an object."""
        full = f"{self.address.prefix}/{key}" if self.address.prefix else key
        return {"Bucket": self.address.bucket, "Key": full}

    def size(self, key: str) -> int | None:
        """Return an object's bytes, or None if there is no such object."""
        try:
            return int(self.request(lambda s3: s3.head_object(**self.where(key)))["ContentLength"])
        except FileNotFoundError:
            return None

    def read(self, key: str, start: int | None = None, length: int = 0) -> bytes:
        """Return an object whole, or ``length`` bytes of it from ``start``.

        Raises:
            FileNotFoundError: there is no such object.
        """
        span = {} if start is None else {"Range": f"bytes={start}-{start + length - 1}"}

        def call(s3: Client) -> bytes:
            body = s3.get_object(**self.where(key), **span)["Body"]
            try:
                data: bytes = body.read()
            finally:
                body.close()
            if start is not None and len(data) != length:
                raise ConnectionError(f"{len(data)} bytes came instead of {length}")
            return data

        return self.request(call)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return up to ``length`` bytes of an object from ``start``: fewer where it ends before.

        Raises:
            FileNotFoundError: there is no such object.
            StoreRequestError: the server knows no ranges.
        """

        def call(s3: Client) -> bytes:
            span = f"bytes={start}-{start + length - 1}"
            answer = s3.get_object(**self.where(key), Range=span)
            body = answer["Body"]
            try:
                if "ContentRange" not in answer:
                    raise StoreRequestError(
                        f"The content store {self.address} gives objects only whole: unset "
                        "MANYEYES_SHARDS.",
                        "NoRange",
                    )
                data: bytes = body.read()
            finally:
                body.close()
            if len(data) != answer["ContentLength"]:
                raise ConnectionError(f"{len(data)} bytes came of {answer['ContentLength']}")
            return data

        try:
            return self.request(call)
        except StoreRequestError as error:
            if error.code in ("InvalidRange", "416"):  # it ends before the first byte
                return b""
            raise

    def write(self, key: str, data: bytes) -> None:
        """Store a small object whole, in place of what was there."""
        self.request(
            lambda s3: s3.put_object(**self.where(key), Body=data, ContentMD5=content_md5(data))
        )

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below ``prefix``, relative to the address, in order."""
        skip = len(f"{self.address.prefix}/") if self.address.prefix else 0
        place = self.where(prefix)
        more: dict[str, str] = {}
        while True:
            page = self.request(
                lambda s3, more=more: s3.list_objects_v2(  # type: ignore[misc] # mypy cannot infer it
                    Bucket=place["Bucket"], Prefix=place["Key"], **more
                )
            )
            for entry in page.get("Contents", ()):
                yield str(entry["Key"])[skip:]
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        self.request(lambda s3: s3.delete_object(**self.where(key)))

    def copy(self, key: str, to: str) -> None:
        """Copy an object within the bucket, of any size."""
        target = self.where(to)
        self.request(lambda s3: s3.copy(self.where(key), target["Bucket"], target["Key"]))


def content_md5(data: bytes) -> str:
    """Return the value of ``Content-MD5``: base64, as HTTP has it."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _aws_variables() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


@lru_cache(maxsize=4)
def _shared_client(_variables: tuple[tuple[str, str], ...]) -> Client:
    """Make one client for equal settings: each costs half a second and connections of its own."""
    return make_client()


def make_client(
    access: S3Access | None = None,
    *,
    connect_seconds: float = CONNECT_SECONDS,
    read_seconds: float = READ_SECONDS,
    attempts: int = 1,
) -> Client:
    """Make boto3's client.

    Args:
        access: the server and the keys; by default those of AWS's variables and files.
        connect_seconds: for a connection.
        read_seconds: between two bytes of an answer.
        attempts: at each request; one where the caller repeats (``retry``).
    """
    import boto3
    from botocore.config import Config

    access = access or S3Access()
    options: dict[str, Any] = {}
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    if access.endpoint or any(os.environ.get(name) for name in variables):
        options = {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            # A server of one's own has one name, not one for each bucket.
            "s3": {"addressing_style": "path"},
        }
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=CONNECTIONS,
        connect_timeout=connect_seconds,
        read_timeout=read_seconds,
        **options,
    )
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
    session = boto3.session.Session(
        aws_access_key_id=access.access_key,
        aws_secret_access_key=access.secret_key,
        aws_session_token=access.session_token,
        profile_name=access.profile,
    )
    return session.client(
        "s3", endpoint_url=access.endpoint, region_name=access.region or region, config=config
    )
