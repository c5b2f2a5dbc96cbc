"""Calls to servers that may be away, busy or of another opinion: retried where that is safe.

The clients of KFP and of Kubernetes are generated from one mould: both raise an ``ApiException``
with a status for what the server said, and urllib3's errors for what the network did. Every failure
leaves here as one sentence with the right exit code: 2 where the user must change something, 1
where time or an operator may mend it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from manyeyes.errors import ManyeyesError, UserError
from manyeyes.runtime.retry import Retries, RetryPolicy

Answer = TypeVar("Answer")

POLICY = RetryPolicy(attempts=5, first=1.0, longest=60.0)
BUSY = (429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
TIMEOUT = 60
"""Seconds for one request; the generated clients would wait for ever."""


class Refused(Exception):
    """The server answered with a status that repeating the request does not change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Unsettled(Exception):
    """The request failed in a way that may pass, or that may even have done its work."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait
        """Seconds the server asked to wait."""


@dataclass(frozen=True)
class Server:
    """A server as the user knows it."""

    name: str
    address: str
    token_variable: str | None = None
    """Environment variable with the token; None where a kubeconfig holds it."""

    def ask(self, function: Callable[[], Answer]) -> Answer:
        """Make a call that may be repeated: it reads, or it says what shall be.

        Raises:
            Refused: the server said no, for a reason the caller may know more about.
            UserError: the token is missing, wrong or has expired, or allows too little.
            ManyeyesError: the server did not answer, or failed again and again.
        """
        return self.settle(lambda: None, function)

    def settle(self, find: Callable[[], Answer | None], make: Callable[[], Answer]) -> Answer:
        """Return what is there, or make it; after each failure look again before repeating.

        A lost answer to a request that did its work must not make a thing twice.

        Args:
            find: returns the thing if it exists.
            make: makes it.

        Raises:
            Refused, UserError, ManyeyesError: as for ``ask``.
        """
        retries = Retries(POLICY)
        while True:
            try:
                found = self._once(find)
                return self._once(make) if found is None else found
            except Unsettled as error:
                if not retries.wait(error.wait):
                    raise ManyeyesError(
                        f"{self.name} at {self.address} {error}, {retries.failures} times in a "
                        "row; if the address is right, try again later."
                    ) from None

    def _once(self, function: Callable[[], Answer]) -> Answer:
        from kfp_server_api import ApiException as PipelineError
        from kubernetes.client import ApiException as KubernetesError
        from urllib3.exceptions import HTTPError

        try:
            return function()
        except (PipelineError, KubernetesError) as error:
            raise self._refusal(error) from None
        except HTTPError as error:
            raise Unsettled(f"does not answer ({_network_reason(error)})") from None

    def _refusal(self, error: Exception) -> Exception:
        status: int = getattr(error, "status", 0) or 0
        message = _message(getattr(error, "body", None)) or str(getattr(error, "reason", ""))
        match status:
            case 0:  # how the clients report a certificate that does not fit
                return ManyeyesError(
                    f"{self.name} at {self.address} could not be trusted: {message}."
                )
            case 401:
                return self._bad_token()
            case 403:
                return UserError(
                    f"{self.name} at {self.address} does not allow it: {message}; "
                    "ask for the role, or use another account."
                )
            case _ if status in BUSY:
                headers = getattr(error, "headers", None) or {}
                return Unsettled(
                    f"answered {status} ({message})", _seconds(headers.get("Retry-After"))
                )
        return Refused(status, message)

    def _bad_token(self) -> UserError:
        if self.token_variable:
            return UserError(
                f"{self.name} at {self.address} refused the token in ${self.token_variable}: it is "
                "wrong or has expired; put a fresh one there and run the command again."
            )
        return UserError(
            f"{self.name} at {self.address} wants to know who asks: log in again, or name the "
            "environment variable with a token as kubeflow.token_variable in the profile."
        )


def quiet_network() -> None:
    """Keep urllib3 from announcing every retry; both clients use it and set other levels."""
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def unexpected(server: Server, what: str, error: Refused) -> ManyeyesError:
    """Say that a server refused something for a reason that only it knows."""
    return ManyeyesError(
        f"{server.name} at {server.address} refused {what}: {error.status} {error.message}."
    )


def _message(body: object) -> str:
    """Return the first line of what a server says about an error, without its final stop."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        told = json.loads(text)
    except ValueError:
        told = {}
    if isinstance(told, dict) and told:
        text = str(told.get("message") or told.get("error_message") or told.get("error") or "")
    elif text.lstrip().startswith("<"):
        text = ""  # a proxy's page
    return (text.strip().splitlines() or [""])[0][:300].rstrip(".")


def _network_reason(error: Exception) -> str:
    """Return what the network did, without the objects that urllib3 prints."""
    inner = getattr(error, "reason", None) or error
    kind = type(inner).__name__
    words = {
        "NewConnectionError": "connection refused",
        "NameResolutionError": "the name is unknown",
        "ConnectTimeoutError": "no connection in time",
        "ReadTimeoutError": "no answer in time",
        "ProtocolError": "the connection was dropped",
        "SSLError": "its certificate cannot be verified",
    }
    return words.get(kind, kind)


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None
