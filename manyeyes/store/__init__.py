"""The content store: every artifact once, by content, in DVC's own layout.

Design decisions:

- The layout is DVC 3's: ``files/md5/ab/cdef...`` holds a file under the md5 of its bytes, and a
  directory is a JSON list of ``{md5, relpath}`` under ``<md5>.dir``. A plain ``dvc pull`` of an
  exported pointer therefore works without this package, and a pod needs no git to write it.
- An object appears by rename, and its bytes are hashed, in and out: the name of an object is always
  true, and a damaged one is noticed when it is taken, moved aside, and is from then on simply not
  there.
- An artifact lies on a disk once: what goes into the store and what comes out of it is cloned or
  linked (``links``). A linked file is read-only; an edit under one name would be one under all.
- It is DVC's own cache, too (``dvc``): what a run made, ``dvc status`` knows, ``dvc push`` sends.
- What to store where is separate from how (:class:`Backend`): a bucket has the same keys, and a
  cache on each node in front of it.
- ``index/<fingerprint>.json`` beside the store maps a stage's fingerprint to its result. An entry
  counts only while every object behind it is there with the right size.

Reading order: ``layout`` (keys), ``content`` (the store), ``backend`` (a folder), ``links``,
``settings`` (which store the environment means); for a bucket ``s3``, ``cache``, ``transfer``,
``bucket``, ``retry``. boto3 is imported when a bucket is first asked.
"""

from __future__ import annotations

from manyeyes.store.backend import Backend, LocalBackend
from manyeyes.store.content import DamagedObjectError, Entry, Store
from manyeyes.store.layout import dvc_owns_outputs, object_key
from manyeyes.store.settings import open_store

__all__ = [
    "Backend",
    "DamagedObjectError",
    "Entry",
    "LocalBackend",
    "Store",
    "dvc_owns_outputs",
    "object_key",
    "open_store",
]
