"""One HTTP request, with short patience and an error that a person can read."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS = 6.0
CLUSTER_SUFFIXES = (".svc", ".cluster.local")


class UnreachableError(Exception):
    """Nobody answered; the text says why in a few words."""


@dataclass(frozen=True)
class Answered:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Case does not matter."""
    body: bytes


def ask(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    login: tuple[str, str] | None = None,
    follow: bool = False,
) -> Answered:
    """Send one request; any status is an answer, a redirection too unless we ``follow`` it.

    Raises:
        UnreachableError: there was none.
    """
    import requests

    try:
        answer = requests.request(
            method,
            url,
            headers=dict(headers or {}),
            auth=login,
            timeout=SECONDS,
            allow_redirects=follow,
        )
    except requests.exceptions.RequestException as error:
        raise UnreachableError(_words(error)) from None
    return Answered(answer.status_code, answer.headers, answer.content)


def is_inside_cluster(address: str) -> bool:
    """Tell whether a URL names a service of a cluster that this machine cannot resolve."""
    host = urlsplit(address).hostname or ""
    if not host.endswith(CLUSTER_SUFFIXES):
        return False
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return True
    return False


def _words(error: Exception) -> str:
    """Say in a few words why a connection failed; foreign texts are long and name our memory."""
    import requests

    text = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate is not trusted here"
    if isinstance(error, requests.exceptions.Timeout):
        return f"no answer within {SECONDS:g} s"
    known = {
        "Connection refused": "connection refused",
        "NameResolutionError": "the name cannot be resolved",
        "Network is unreachable": "the network is unreachable",
        "No route to host": "no route to the host",
        "Connection aborted": "the connection was dropped",
        "Connection reset": "the connection was dropped",
    }
    words = (words for sign, words in known.items() if sign in text)
    return next(words, type(error).__name__)
