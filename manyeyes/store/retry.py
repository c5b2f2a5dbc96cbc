"""Which failures of an object store pass by themselves, and how long to wait for that.

Design decisions:

- One policy for everything: botocore's own retries are off, because they know nothing of a
  connection that breaks in the middle of a body and give up after seconds. A storage server that is
  restarted under a running pipeline is away for half a minute or more; nothing may be lost then.
- Wrong keys, a bucket that is not there, a missing permission do not pass: they are told at once.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, TypeVar

from manyeyes.errors import ManyeyesError, UserError
from manyeyes.runtime.retry import Retries, RetryPolicy
from manyeyes.store.pool import pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.exceptions import ClientError

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

_PASSING = frozenset(
    {
        "BadDigest",
        "InternalError",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentChecksumMismatch",
    }
)
_ABSENT = frozenset({"NoSuchKey", "NotFound", "404"})
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})


class StoreUnreachableError(ManyeyesError):
    """The object store did not answer as it should for as long as we were willing to wait."""


class StoreRequestError(ManyeyesError):
    """The object store refused one request for a reason that waiting does not change.

    Attributes:
        code: S3's name of the reason, such as ``NoSuchUpload``.
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


PATIENCE = RetryPolicy(seconds=180.0, first=0.5, longest=10.0, spread=True)


class _GroupClock:
    """Time whose waits end early when the group of this thread is stopped."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        pause(seconds)


def keep_trying(policy: RetryPolicy, where: str, request: Callable[[], Result]) -> Result:
    """Make a request, again and again while its failures are such as pass.

    Args:
        policy: for how long.
        where: the store, for messages.
        request: the request; repeating it must be harmless.

    Raises:
        FileNotFoundError: there is no such object.
        UserError: no access, or no such bucket.
        StoreRequestError: refused for another reason that does not pass.
        StoreUnreachableError: it failed for as long as the policy allows.
    """
    retries = Retries(policy, _GroupClock())
    while True:
        try:
            return request()
        except Exception as error:
            if not _passes(error):
                raise _final(where, error) from error
            if not retries.failures:
                logger.warning(
                    "%s does not answer as it should (%s); trying for %.0f s",
                    where, reason(error), policy.seconds,
                )  # fmt: skip
            if not retries.wait():
                raise StoreUnreachableError(
                    f"The content store {where} did not answer for {policy.seconds:.0f} s "
                    f"({reason(error)}): check AWS_ENDPOINT_URL and that it runs, then run "
                    "the same command again; what was finished is kept."
                ) from error


def _passes(error: Exception) -> bool:
    from botocore import exceptions as boto
    from urllib3.exceptions import HTTPError

    if isinstance(error, boto.ClientError):
        code, status = _code(error), _status(error)
        return code in _PASSING or status in _PASSING_STATUS
    kinds = (
        boto.ConnectionError,
        boto.HTTPClientError,
        boto.IncompleteReadError,
        boto.FlexibleChecksumError,
        HTTPError,
        ConnectionError,
        TimeoutError,
    )
    return isinstance(error, kinds)


def _final(where: str, error: Exception) -> Exception:
    """Return the exception a user or a caller understands."""
    from botocore import exceptions as boto

    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return UserError(
            f"No credentials for the content store {where}: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or run where the machine has an identity."
        )
    if not isinstance(error, boto.ClientError):
        return error
    code = _code(error)
    if code in _ABSENT:
        return FileNotFoundError(code)
    if code == "NoSuchBucket":
        return UserError(
            f"The bucket of the content store {where} does not exist: create it, or correct "
            "MANYEYES_STORE."
        )
    if _status(error) in (401, 403):
        return UserError(
            f"The content store {where} refuses access ({code}): check the AWS credentials and "
            "what they may do in this bucket."
        )
    return StoreRequestError(f"The content store {where} refused a request: {reason(error)}.", code)


def reason(error: Exception) -> str:
    """Return an error in a few words."""
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
