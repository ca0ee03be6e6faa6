"""Error types: a source that cannot be used (a row with a reason), an invalid request, and a run that stopped."""

import errno
import os
from collections.abc import Mapping
from types import MappingProxyType

ERROR_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "missing": "no file exists at this address",
        "unreadable": "the file exists but cannot be read (permissions, a folder, a storage error)",
        "empty": "the file is empty, or its video stream has no frames",
        "not_video": "the content is not a media file",
        "no_video_stream": "a media file without a video stream (audio only, cover art)",
        "unsupported_container": "a container or playlist format that is not on the allow-list",
        "too_large": "exceeds the limits on bytes, pixels or streams",
        "too_long": "exceeds the limit on duration",
        "decode_error": "no usable footage could be decoded",
        "encrypted": "the video stream is encrypted",
        "timeout": "the scan exceeded its time limit",
        "out_of_memory": "the scan exceeded its memory limit",
        "crashed": "the scan process crashed or raised an unexpected error",
    }
)
"""Every value of `error_kind`, and its meaning."""


INTERRUPTED = 130
"""Exit code of a command that Ctrl-C or SIGTERM ended."""


def interrupt(*_: object) -> None:
    """Handler of SIGTERM: what Python's own does on Ctrl-C."""
    raise KeyboardInterrupt


class SourceError(Exception):
    """A source that cannot be curated. Becomes a rejected row in `sources` and never ends a run."""

    def __init__(self, kind: str, message: str) -> None:
        assert kind in ERROR_KINDS, kind
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class UserError(ValueError):
    """A request that cannot be carried out; the message states what was expected, what it got, and the next step."""


class EmptyResult(UserError):
    """A valid request whose result is empty."""


class RunStopped(UserError):
    """A run that had to stop (disk full, taken over by another run). Completed work is kept; rerun to resume."""


class Superseded(RunStopped):
    """Another run owns the folder by now: nothing may be written to it anymore."""


_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_THREAD = "can't start new thread"
_LONGEST_CHAIN = 20
"""Limit on the chain of causes, which can be cyclic in some libraries."""


def raise_if_stopped(error: BaseException) -> None:
    """Raise RunStopped if an error is caused by the machine or the run rather than by the source.

    Call it wherever an exception becomes a row: a machine out of file descriptors, threads or disk space, or without a
    package, would otherwise reject every remaining source or clip.
    """
    cause: BaseException | None = error
    for _ in range(_LONGEST_CHAIN):
        if isinstance(cause, RunStopped):
            raise cause
        if isinstance(cause, OSError) and cause.errno in _EXHAUSTED:
            raise RunStopped(_exhausted(os.strerror(cause.errno), "ulimit -n")) from error
        if isinstance(cause, OSError) and cause.errno in _FULL:
            where = f" ({cause.filename})" if cause.filename else ""
            raise RunStopped(
                f"{os.strerror(cause.errno)}{where}. Free some space on this machine, then rerun the same command"
            ) from error
        if isinstance(cause, ImportError):
            raise RunStopped(f"{cause}. Install it on every node, then rerun the same command") from error
        if isinstance(cause, RuntimeError) and str(cause) == _NO_THREAD:
            raise RunStopped(_exhausted(_NO_THREAD, "ulimit -u")) from error
        cause = cause and (cause.__cause__ or cause.__context__)


def _exhausted(reason: str, limit: str) -> str:
    return f"this machine ran out of resources: {reason}. Raise the limit ({limit}), then rerun the same command"
