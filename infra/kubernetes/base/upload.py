"""Send database dumps to BACKUP_BUCKET/BACKUP_PREFIX/TIME/, read them back, drop the oldest.

Runs in the control image as the last container of the backup job. A dump that cannot be read back
as it was sent fails the job, and then nothing old is dropped.
"""

import hashlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import boto3

BLOCK = 1 << 20


def main() -> None:
    """Send, check, drop."""
    bucket, prefix = os.environ["BACKUP_BUCKET"], os.environ["BACKUP_PREFIX"].strip("/")
    store = boto3.client("s3")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    dumps = sorted(Path(os.environ.get("BACKUP_FOLDER", "/backup")).glob("*.dump"))
    if not dumps:
        sys.exit("There is nothing to send: the dump before this container wrote no file.")
    for dump in dumps:
        key = f"{prefix}/{now}/{dump.name}"
        store.upload_file(str(dump), bucket, key)
        with dump.open("rb") as sent:
            if _digest(store.get_object(Bucket=bucket, Key=key)["Body"]) != _digest(sent):
                sys.exit(f"What was read back from s3://{bucket}/{key} is not what was sent.")
        sys.stdout.write(f"sent s3://{bucket}/{key}: {dump.stat().st_size} bytes\n")
    _drop(store, bucket, prefix, int(os.environ["BACKUP_KEEP"]))


def _drop(store, bucket: str, prefix: str, keep: int) -> None:  # noqa: ANN001  # boto3 has no types
    """Delete all but the newest ``keep`` backups."""
    pages = store.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    times = sorted({key.removeprefix(f"{prefix}/").split("/")[0] for key in keys})
    for key in keys:
        if key.removeprefix(f"{prefix}/").split("/")[0] in times[:-keep]:
            store.delete_object(Bucket=bucket, Key=key)
            sys.stdout.write(f"dropped s3://{bucket}/{key}\n")


def _digest(stream) -> str:  # noqa: ANN001  # a file or boto3's body
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(BLOCK), b""):
        digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
