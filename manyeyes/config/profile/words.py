"""The words of a profile that carry a rule: images, quantities, addresses.

Each check returns its word or says in a sentence what is wrong with it. Regular expressions in the
schema would be shorter, but their errors show the expression and not what to write.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_IMAGE = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_CPU = re.compile(r"[1-9][0-9]*m|[0-9]+(\.[0-9]+)?")
_BYTES = re.compile(r"[1-9][0-9]*([EPTGMK]i|[EPTGM])?")


def check_image(word: str) -> str:
    """Refuse an image that can change under its name."""
    if not _IMAGE.fullmatch(word):
        raise ValueError(
            f"image {word!r} is not pinned: a tag can move, and KFP's cache cannot notice it; "
            "give NAME@sha256:DIGEST with 64 hexadecimal digits"
        )
    return word


def check_cpu(word: str) -> str:
    """Refuse what is no number of cores."""
    if not _CPU.fullmatch(word) or not word.strip("0."):
        raise ValueError(f"{word!r} is no number of cores; write for instance 16, 0.5 or 500m")
    return word


def check_bytes(word: str) -> str:
    """Refuse sizes that Kubernetes or KFP cannot read; KFP takes whole numbers only."""
    if not _BYTES.fullmatch(word):
        raise ValueError(
            f"{word!r} is no size; write a whole number with Mi, Gi or Ti, for instance 200Gi"
        )
    return word


def check_address(word: str) -> str:
    """Refuse an address that is no URL of a server, or that holds a password."""
    try:
        address = urlsplit(word)
        host = address.hostname
    except ValueError:
        host = None
    if host and "@" in address.netloc:
        raise ValueError(
            f"the address of {host} holds a user or a password, and profiles are read by many; "
            "keep them in a secret and name the secret"
        )
    if not host or address.scheme not in {"http", "https"}:
        raise ValueError(f"{word!r} is no address; write for instance https://kfp.example.org")
    return word


def cores(word: str) -> float:
    """Return a checked number of cores as a number."""
    return float(word[:-1]) / 1000 if word.endswith("m") else float(word)
