"""Which revision of a Hugging Face model is meant: the one in the cache of this machine.

A name on the hub is not content: its ``main`` moves. So the commit that the cache holds is part of
a stage's key, and everything that loads asks for that commit, so that a result is made of what its
key says. Where the cache has nothing yet, the commit is found by fetching the model's config first.

No torch here; ``explain`` asks too.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_name(reference: str) -> bool:
    """Say whether a reference can only be a name on the hub: no folder or file has it."""
    path = Path(reference)
    return (
        PATTERN.fullmatch(reference) is not None
        and path.suffix != ".safetensors"
        and not path.exists()
    )


def cached_revision(repository: str) -> str | None:
    """Return the commit of ``main`` that the cache of this machine has; None if it has none."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if commit and (folder / "snapshots" / commit).is_dir() else None


def fetched_revision(repository: str) -> str | None:
    """Return the cached commit, asking the hub where there is none; None if it does not answer."""
    found = cached_revision(repository)
    if found is not None:
        return found
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    # away, offline, private, or a repository without this file: the loader says what is wrong
    with suppress(OSError, ValueError, EntryNotFoundError):
        hf_hub_download(repository, "config.json")
    return cached_revision(repository)


def revision_options(reference: str) -> dict[str, str]:
    """Return how a loader of transformers is told the commit; nothing where it is no hub name."""
    commit = fetched_revision(reference) if is_hub_name(reference) else None
    return {"revision": commit} if commit else {}
