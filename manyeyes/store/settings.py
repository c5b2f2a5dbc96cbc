"""Where the store lies, as the environment says it.

======================  ===========================================================================
``MANYEYES_STORE``      ``s3://BUCKET/PREFIX``; without it, ``store/`` in the state directory
``AWS_...``             the usual variables: keys, region, ``AWS_ENDPOINT_URL`` for another server
``MANYEYES_CACHE``      folder of a node's cache; ``cache/`` in the state directory by default
``MANYEYES_CACHE_LIMIT`` its size as a Kubernetes quantity; 50Gi by default, 0 for no limit
``MANYEYES_SHARDS``     ``remote``: training and evaluation read pictures from the bucket, by ranges
======================  ===========================================================================
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.errors import UserError
from manyeyes.runtime.home import CACHE, STORE, home
from manyeyes.store.content import Store
from manyeyes.store.dvc import remotes_at

if TYPE_CHECKING:
    from manyeyes.runtime.retry import RetryPolicy

CACHE_LIMIT = "MANYEYES_CACHE_LIMIT"
SHARDS = "MANYEYES_SHARDS"
DEFAULT_LIMIT = "50Gi"
_FACTORS = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def open_store(place: str | None = None, policy: RetryPolicy | None = None) -> Store:
    """Return the content store; nothing is read or sent yet.

    Args:
        place: a path or ``s3://BUCKET/PREFIX``; the environment's store when None.
        policy: how long a failing request is repeated; for S3.

    Raises:
        UserError: a variable has a value that cannot be used.
    """
    place = place or os.environ.get(STORE, "").strip()
    if not place:
        return Store(home() / "store")
    if "://" not in place and os.path.isabs(place):
        return Store(Path(place))
    from manyeyes.store.bucket import Address, Bucket
    from manyeyes.store.cache import Cache
    from manyeyes.store.s3 import S3Backend

    bucket = Bucket(Address.parse(place), policy=policy)
    folder = os.environ.get(CACHE, "").strip()
    cache = Cache(Path(folder).absolute() if folder else home() / "cache", cache_limit())
    return Store(home() / "store", S3Backend(bucket, cache))


def open_named(place: str) -> Store:
    """Return the store that a file names, if the user's own configuration names it too.

    Whoever opens a bucket shows it who he is, so a pointer that came from somebody must not choose
    the bucket.

    Raises:
        UserError: neither ``MANYEYES_STORE`` nor DVC's configuration names it.
    """
    if not is_named(place):
        raise UserError(
            f"The pointer leads to the content store {place!r}, which your configuration does not "
            f"name: set {STORE}={place} if you trust it, or add it with 'dvc remote add'."
        )
    return open_store(place)


def is_named(place: str) -> bool:
    """Say whether the user's own configuration names a store: the environment, or DVC's files."""
    named = {open_store().where, *remotes_at(Path.cwd() / "file")}
    return place.rstrip("/") in {each.rstrip("/") for each in named}


def shards_are_remote() -> bool:
    """Say whether training and evaluation read a dataset's shards where they lie, in the bucket.

    Raises:
        UserError: ``MANYEYES_SHARDS`` is neither ``remote`` nor ``local``.
    """
    text = os.environ.get(SHARDS, "").strip() or "local"
    if text not in ("local", "remote"):
        raise UserError(
            f"{SHARDS} is {text!r}: say remote to read pictures from the bucket in training "
            "and evaluation, or local to fetch datasets whole, as without it."
        )
    return text == "remote"


def cache_limit() -> int | None:
    """Return the cache's limit in bytes, None for no limit.

    Raises:
        UserError: ``MANYEYES_CACHE_LIMIT`` is no quantity of bytes.
    """
    text = os.environ.get(CACHE_LIMIT, "").strip() or DEFAULT_LIMIT
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)((?:[kMGT]i?|Ki)?)", text)
    factor = _FACTORS.get(match[2]) if match else None
    if match is None or factor is None:
        raise UserError(
            f"MANYEYES_CACHE_LIMIT is {text!r}: give a quantity of bytes such as 200Gi or 500M."
        )
    return int(float(match[1]) * factor) or None
