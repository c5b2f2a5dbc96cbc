"""Tries an S3 bucket with one small object: put, get, delete. Each way to fail has its sentence."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from manyeyes.doctor.findings import Finding, ok, problem, unchecked, warning
from manyeyes.store.bucket import Client, S3Access, make_client

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

CONTENT = b"written by manyeyes doctor; may be deleted\n"
_NEEDED = "Every result is stored there, and every step fetches its inputs from there."


@dataclass(frozen=True)
class TriedBucket:
    """Where objects lie, and who we are."""

    name: str
    prefix: str
    login: str
    """Where the keys come from, for the texts."""
    access: S3Access = field(default_factory=S3Access)
    """Without keys boto3 looks for an identity itself."""

    @property
    def shown(self) -> str:
        """The bucket as a person may read it."""
        at = f" at {self.access.endpoint}" if self.access.endpoint else ""
        return f"s3://{self.name}/{self.prefix}".rstrip("/") + at

    @property
    def address(self) -> str:
        """The URL requests go to."""
        return (
            self.access.endpoint or f"https://s3.{self.access.region or 'us-east-1'}.amazonaws.com"
        )

    @property
    def command(self) -> str:
        """The AWS command line, pointed at this endpoint."""
        return "aws s3" + (
            f" --endpoint-url {self.access.endpoint}" if self.access.endpoint else ""
        )


def try_bucket(bucket: TriedBucket) -> Finding:
    """Write one object, read it, delete it."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
    )

    key = "/".join(filter(None, [bucket.prefix.strip("/"), "doctor", uuid.uuid4().hex]))
    try:
        client = make_client(bucket.access, connect_seconds=4, read_seconds=6, attempts=2)
        if _is_missing(client, bucket):
            return _no_bucket(bucket)
        client.put_object(Bucket=bucket.name, Key=key, Body=CONTENT)
        try:
            body = client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
        finally:
            deleted = _delete(client, bucket, key)
    except ClientError as error:
        return _refused(bucket, error)
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound):
        return unchecked(
            f"{bucket.shown} was not tried.",
            f"There are no credentials: {bucket.login}.",
            "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...",
        )
    except (BotoCoreError, ValueError, OSError) as error:
        return problem(
            f"{bucket.shown} does not answer ({type(error).__name__}).",
            _NEEDED,
            f"curl -v {bucket.address}",
        )
    return _judge(bucket, key, body, deleted=deleted)


def _judge(bucket: TriedBucket, key: str, body: bytes, *, deleted: bool) -> Finding:
    """Judge what came back of the object, and whether it could be deleted."""
    if body != CONTENT:
        return problem(
            f"{bucket.shown} returns other bytes than were written.",
            "A cache or a faulty gateway stands before it; every result would count as damaged.",
            "Use the storage's own endpoint, without a proxy.",
        )
    if not deleted:
        return warning(
            f"{bucket.shown} can be written and read, but not deleted from.",
            f"Old results can never be cleared away; the object {key} stays there.",
            f"Allow s3:DeleteObject on arn:aws:s3:::{bucket.name}/*",
        )
    return ok(f"{bucket.shown} can be written, read and deleted from, with {bucket.login}.")


def _delete(client: Client, bucket: TriedBucket, key: str) -> bool:
    """Take the object away again, and say whether that worked."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.delete_object(Bucket=bucket.name, Key=key)
    except (ClientError, BotoCoreError):
        return False
    return True


def _refused(bucket: TriedBucket, error: ClientError) -> Finding:
    """Turn an error of the S3 protocol into a sentence."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    match code:
        case "NoSuchBucket" | "404":
            return _no_bucket(bucket)
        case "InvalidAccessKeyId" | "SignatureDoesNotMatch":
            return problem(
                f"{bucket.shown} does not accept {bucket.login} ({code}).",
                "The access key or the secret key is wrong. " + _NEEDED,
                "aws sts get-caller-identity, with the same keys; then write the right ones",
            )
        case "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired":
            return problem(
                f"The session of {bucket.login} for {bucket.shown} has ended ({code}).",
                _NEEDED,
                "Log in again, for example: aws sso login",
            )
        case "RequestTimeTooSkewed":
            return problem(
                f"{bucket.shown} refuses requests because this machine's clock is wrong.",
                "S3 accepts signatures that are at most 15 minutes off.",
                "timedatectl set-ntp true",
            )
        case "AccessDenied" | "403" | "AllAccessDisabled":
            action = "s3:" + str(error.operation_name)
            return problem(
                f"{bucket.login[:1].upper()}{bucket.login[1:]} may not do {action} on "
                f"{bucket.shown}.",
                _NEEDED,
                "Allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on "
                f"arn:aws:s3:::{bucket.name} and arn:aws:s3:::{bucket.name}/*",
            )
        case "PermanentRedirect" | "AuthorizationHeaderMalformed" | "301":
            return problem(
                f"The bucket {bucket.name} is not in the region {bucket.access.region}.",
                "Requests signed for another region are refused.",
                f"aws s3api get-bucket-location --bucket {bucket.name}",
            )
        case _:
            return problem(
                f"{bucket.shown} answers {code} to {error.operation_name}.",
                _NEEDED,
                f"{bucket.command} ls s3://{bucket.name}",
            )


def _is_missing(client: Client, bucket: TriedBucket) -> bool:
    """Ask for the bucket itself: SeaweedFS answers a put into none with an internal error."""
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=bucket.name)
    except ClientError as error:
        # Anything else may be a missing right to list; the put tells.
        return error.response.get("Error", {}).get("Code") in ("404", "NoSuchBucket")
    return False


def _no_bucket(bucket: TriedBucket) -> Finding:
    at = f" at {urlsplit(bucket.access.endpoint).netloc}" if bucket.access.endpoint else ""
    return problem(
        f"There is no bucket {bucket.name}{at}.",
        _NEEDED,
        f"{bucket.command} mb s3://{bucket.name}",
    )
