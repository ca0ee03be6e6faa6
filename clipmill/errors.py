"""The two kinds of failure: a source that cannot be used (a row with its reason), and a user's mistake."""

import errno
import os
from collections.abc import Mapping
from types import MappingProxyType

ERROR_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "missing": "nothing is at this address",
        "unreadable": "it is there but cannot be read (permission, a folder, a failing store)",
        "empty": "the file holds no bytes, or its video stream no frame",
        "not_video": "the content is not a media file",
        "no_video_stream": "a media file without a moving picture (audio only, cover art)",
        "unsupported_container": "a container or playlist format that is not on the allow-list",
        "too_large": "more bytes, pixels or streams than the limits allow",
        "too_long": "longer than the limits allow",
        "decode_error": "the decoder could read no usable footage",
        "timeout": "the scan did not finish within its time limit",
        "out_of_memory": "the scan needed more than its memory limit",
        "crashed": "the scanning process went down, or met an error that nobody expected",
    }
)
"""Every value `error_kind` can have, and what it means."""


class SourceError(Exception):
    """A source that cannot be curated. Becomes one rejected row in `sources`, never the end of a run."""

    def __init__(self, kind: str, message: str) -> None:
        assert kind in ERROR_KINDS, kind
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class UserError(ValueError):
    """A request that cannot be carried out; the message says what was expected, what it got, and what to do."""


class RunStopped(UserError):
    """A run that could not go on (a full disk, another run in its place). What it did stays; run it again."""


_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS}
_NO_THREAD = "can't start new thread"
_LONGEST_CHAIN = 20
"""Of causes: a library's may lead in a circle."""


def raise_if_stopped(error: BaseException) -> None:
    """Raise RunStopped where an error says that the run, or this machine, is at its end, and nothing of a source.

    For every place that turns an exception into a row: a machine without file descriptors or threads left would reject
    one good source after the other, for good.
    """
    cause: BaseException | None = error
    for _ in range(_LONGEST_CHAIN):
        if isinstance(cause, RunStopped):
            raise cause
        if isinstance(cause, OSError) and cause.errno in _EXHAUSTED:
            raise RunStopped(_exhausted(os.strerror(cause.errno), "ulimit -n")) from error
        if isinstance(cause, RuntimeError) and str(cause) == _NO_THREAD:
            raise RunStopped(_exhausted(_NO_THREAD, "ulimit -u")) from error
        cause = cause and (cause.__cause__ or cause.__context__)


def _exhausted(reason: str, limit: str) -> str:
    return f"this machine cannot go on reading: {reason}. Raise the limit ({limit}), then run the same command again"
