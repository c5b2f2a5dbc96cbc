"""Moving one file to or from a bucket: in parts, several at a time, continued where it stopped.

Design decisions:

- Up: the file is read once to learn its digests, whole and of each part, and once to send it. A
  part is sent only if it still has the digest of the first reading, so what is stored is what was
  hashed. What an earlier, killed attempt sent is found by the key (an object's key is its digest,
  so any unfinished upload of it is of the same bytes) and kept where the part's md5 agrees.
- Two processes may send one object at the same time, even into one upload: the parts are equal, and
  the one that comes second finds the object there.
- Down: parts are written in place into a partial file, and a journal beside it says which are
  there. The journal may be wrong after a power failure; the digest of the whole decides.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manyeyes.artifact.manifest import FileEntry
from manyeyes.errors import UserError
from manyeyes.store.bucket import content_md5
from manyeyes.store.pool import each
from manyeyes.store.retry import StoreRequestError, StoreUnreachableError

if TYPE_CHECKING:
    from pathlib import Path

    from manyeyes.store.bucket import Bucket, Client

PART_BYTES = 16 << 20
MAX_PARTS = 9_000
"""S3 allows 10,000."""
WORKERS = 4
"""Parts of one file at a time; files are moved side by side too."""
ATTEMPTS = 3
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Parts:
    """How a file of ``size`` bytes is cut; a function of the size alone."""

    size: int
    part: int

    @classmethod
    def of(cls, size: int) -> Parts:
        """Cut as small as the number of parts allows."""
        part = PART_BYTES
        while part * MAX_PARTS < size:
            part *= 2
        return cls(size, part)

    @property
    def count(self) -> int:
        """Number of parts; none for an empty file."""
        return -(-self.size // self.part)

    def span(self, index: int) -> tuple[int, int]:
        """Return start and length of a part."""
        start = index * self.part
        return start, min(self.part, self.size - start)


@dataclass(frozen=True)
class Digests:
    """A file's digests: of the whole, and the md5 of each part, hexadecimal."""

    entry: FileEntry
    parts: tuple[str, ...]


def upload(bucket: Bucket, source: Path, key: str, md5: str | None = None) -> FileEntry:
    """Send a file.

    Args:
        bucket: where to.
        source: the file; it must not change meanwhile.
        key: its key; the same key always means the same bytes.
        md5: what the file's md5 must be; a file with another is not sent.

    Returns:
        Size and digests of the file, as it was read and sent.

    Raises:
        StoreUnreachableError: the store did not take it, or the file changed meanwhile.
    """
    digests = read_digests(source)
    if md5 is None or digests.entry.md5 == md5:
        send(bucket, source, key, digests)
    return digests.entry


def send(bucket: Bucket, source: Path, key: str, digests: Digests) -> None:
    """Send a file whose digests were just read; raises as ``upload``."""
    cut = Parts.of(digests.entry.size)
    if cut.count <= 1:
        bucket.write(key, _part(source, cut, 0, digests.entry.md5) if cut.count else b"")
    else:
        _upload_parts(bucket, source, key, cut, digests)
    stored = bucket.size(key)
    if stored != cut.size:
        raise StoreUnreachableError(
            f"The content store {bucket.address} has {stored} bytes of {source.name} after "
            f"{cut.size} were sent; run the same command again."
        )


def download(bucket: Bucket, key: str, target: Path, size: int) -> None:
    """Fetch an object into ``target``, continuing what is there; its digest is not checked here.

    Args:
        bucket: where from.
        key: the object.
        target: a file that exists; ``<target>.done`` beside it is the journal.
        size: the object's bytes.

    Raises:
        FileNotFoundError: there is no such object.
    """
    cut = Parts.of(size)
    journal = journal_of(target)
    done = journal.read_bytes() if journal.exists() else b""
    missing = [index for index in range(cut.count) if done[index : index + 1] != b"\1"]
    with target.open("r+b") as data, journal.open("r+b" if done else "w+b") as marks:
        data.truncate(size)

        def fetch(index: int) -> None:
            start, length = cut.span(index)
            os.pwrite(data.fileno(), bucket.read(key, start, length), start)
            os.pwrite(marks.fileno(), b"\1", index)

        each(fetch, missing, WORKERS)
    journal.unlink()


def journal_of(target: Path) -> Path:
    """Return the file that says which parts of ``target`` are there."""
    return target.with_name(f"{target.name}.done")


def _upload_parts(bucket: Bucket, source: Path, key: str, cut: Parts, digests: Digests) -> None:
    """Send a file in parts; an upload that somebody else ended or dropped is begun again."""
    for attempt in range(1, ATTEMPTS + 1):
        upload_id, there = _unfinished(bucket, key, cut)
        try:
            _send_missing(bucket, source, key, cut, digests, upload_id, there)
        except StoreRequestError as error:
            if error.code not in ("NoSuchUpload", "InvalidPart"):
                raise
            if bucket.size(key) == cut.size:
                return
            if attempt == ATTEMPTS:
                raise
        else:
            return


def _send_missing(
    bucket: Bucket,
    source: Path,
    key: str,
    cut: Parts,
    digests: Digests,
    upload_id: str,
    there: dict[int, str],
) -> None:
    place = {**bucket.where(key), "UploadId": upload_id}

    def send(index: int) -> dict[str, Any]:
        number, md5 = index + 1, digests.parts[index]
        if there.get(number) == md5:
            return {"PartNumber": number, "ETag": f'"{md5}"'}
        data = _part(source, cut, index, md5)
        answer = bucket.request(
            lambda s3: s3.upload_part(
                **place, PartNumber=number, Body=data, ContentMD5=content_md5(data)
            )
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    sent = each(send, range(cut.count), WORKERS)
    bucket.request(
        lambda s3: s3.complete_multipart_upload(**place, MultipartUpload={"Parts": sent})
    )


def _unfinished(bucket: Bucket, key: str, cut: Parts) -> tuple[str, dict[int, str]]:
    """Return an upload of this object to continue and the md5 of its parts, or a new upload.

    Servers that cannot list uploads, and accounts that may not, get a new one each time.
    """
    place = bucket.where(key)
    try:
        found = bucket.request(
            lambda s3: s3.list_multipart_uploads(Bucket=place["Bucket"], Prefix=place["Key"])
        ).get("Uploads", [])
        same = [upload for upload in found if upload["Key"] == place["Key"]]
        for upload in sorted(same, key=lambda upload: str(upload.get("Initiated")), reverse=True):
            upload_id = str(upload["UploadId"])
            return upload_id, _parts_there(bucket, place, upload_id, cut)
    except (StoreRequestError, UserError, FileNotFoundError):
        pass
    answer = bucket.request(lambda s3: s3.create_multipart_upload(**place))
    return str(answer["UploadId"]), {}


def _parts_there(
    bucket: Bucket, place: dict[str, str], upload_id: str, cut: Parts
) -> dict[int, str]:
    """Return number and md5 of the parts an upload has, where their size is ours."""

    def pages(s3: Client) -> list[dict[str, Any]]:
        paginator = s3.get_paginator("list_parts")
        answers = paginator.paginate(**place, UploadId=upload_id)
        return [part for answer in answers for part in answer.get("Parts", ())]

    return {
        int(part["PartNumber"]): str(part["ETag"]).strip('"')
        for part in bucket.request(pages)
        if 1 <= int(part["PartNumber"]) <= cut.count
        and int(part["Size"]) == cut.span(int(part["PartNumber"]) - 1)[1]
    }


def read_digests(source: Path) -> Digests:
    """Read a file once, in order; return the digests of the whole and of its parts."""
    cut = Parts.of(source.stat().st_size)
    sha256, whole = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    parts = []
    with source.open("rb") as file:
        for index in range(cut.count):
            part, left = hashlib.md5(usedforsecurity=False), cut.span(index)[1]
            while left and (block := file.read(min(_BLOCK, left))):
                left -= len(block)
                for digest in (sha256, whole, part):
                    digest.update(block)
            parts.append(part.hexdigest())
    entry = FileEntry(size=cut.size, sha256=sha256.hexdigest(), md5=whole.hexdigest())
    return Digests(entry, tuple(parts))


def _part(source: Path, cut: Parts, index: int, md5: str) -> bytes:
    """Read one part.

    Raises:
        StoreUnreachableError: it no longer is what was hashed.
    """
    start, length = cut.span(index)
    with source.open("rb") as file:
        file.seek(start)
        data = file.read(length)
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise StoreUnreachableError(
            f"{source} changed while it was sent to the content store; run its stage again."
        )
    return data
