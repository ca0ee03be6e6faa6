"""Retry requests to a store after transient errors: unreachable, overloaded, a broken connection."""

import itertools
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from clipmill import storage
from clipmill.errors import RunStopped, UserError

T = TypeVar("T")

RETRY_S = 300.0
"""How long to retry a failing request by default."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 20.0
_WARN_AFTER_S = 5.0
_TRANSIENT = {408, 425, 429}
"""HTTP statuses below 500 after which a retry can succeed."""
_CHANGED = {412, 416}
_REFUSED = {401, 403}
_MISCONFIGURED = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound"}
"""botocore's errors for invalid configurations."""
_LOG = logging.getLogger("clipmill.data")


class ChangedObject(UserError):
    """An object was replaced after it was found."""


def retried(attempt: Callable[[], T], address: str, retry_s: float, *, action: str = "read") -> T:
    """The result of `attempt`, retried with growing pauses after transient errors.

    Raises FileNotFoundError; UserError for permanent errors; RunStopped after `retry_s` seconds of transient ones.
    """
    started_s, pause_s, warned = time.monotonic(), _FIRST_PAUSE_S, False
    for tries in itertools.count(1):
        try:
            return attempt()
        except Exception as error:
            if not _is_transient(error):
                raise _permanent(error, address, action) from error
            reason, spent_s = storage.reason_of(error), time.monotonic() - started_s
            if spent_s >= retry_s:
                raise RunStopped(
                    f"cannot {action} {address}: {reason} ({tries} attempts in {spent_s:.0f} s). Check that the store "
                    "is reachable, then rerun the same command"
                ) from error
        if spent_s > _WARN_AFTER_S and not warned:
            _LOG.warning("%s: %s; retrying for up to %.0f s", address, reason, retry_s)
            warned = True
        # Not Python's global generator, whose state belongs to the run.
        time.sleep(min(pause_s * random.SystemRandom().uniform(0.5, 1.0), retry_s - spent_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    raise AssertionError


def _is_transient(error: Exception) -> bool:
    """Whether a retry can succeed."""
    if isinstance(error, UserError | FileNotFoundError | PermissionError) or type(error).__name__ in _MISCONFIGURED:
        return False
    status = _status(error)
    if status is not None and status >= 300:
        return status >= 500 or status in _TRANSIENT
    return storage.is_of_store(error)


def _permanent(error: Exception, address: str, action: str) -> Exception:
    """The error to raise for a permanent one."""
    status, reason = _status(error), storage.reason_of(error)
    if isinstance(error, UserError) or not (storage.is_of_store(error) or status):
        return error
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(f"{address}: no such file, object or bucket. Check the address")
    if status in _CHANGED:
        return ChangedObject(
            f"{address} changed since it was indexed: {reason}. Rerun the same command to index it again"
        )
    if isinstance(error, PermissionError) or status in _REFUSED:
        reason = (
            f"permission denied ({reason}). Check that the credentials in the environment grant list and "
            f"{action} access"
        )
    elif type(error).__name__ in _MISCONFIGURED:
        reason += ". Set the credentials in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return UserError(f"cannot {action} {address}: {reason}")


def _status(error: BaseException) -> int | None:
    """HTTP status of an error of boto, aiohttp or gcsfs. A cause's `status` does not count: aiohttp invents one for
    broken responses."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(answer, Mapping):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else None
