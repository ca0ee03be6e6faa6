"""Temporary copies of files that cannot be read at random: of servers without ranges, of compressed archives."""

import errno
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from typing import BinaryIO

from clipmill.errors import RunStopped, UserError

COPY_BYTES = 1 << 30
"""Maximum size of a copy, unless a caller says otherwise."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def copied(blocks: Iterable[bytes], *, max_bytes: int, why: str) -> BinaryIO:
    """An anonymous temporary file with these blocks, at its beginning; it vanishes when it is closed.

    Raises UserError, which begins with `why`, beyond `max_bytes`; RunStopped if the temporary folder is full.
    """
    file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
    size_bytes = 0
    try:
        for block in blocks:
            size_bytes += len(block)
            if size_bytes > max_bytes:
                raise too_large(why, max_bytes)
            file.write(block)
        file.seek(0)
        return file
    except OSError as error:
        with suppress(OSError):
            file.close()
        if error.errno in _NO_ROOM:
            raise RunStopped(f"{tempfile.gettempdir()} is full: {os.strerror(error.errno)}; set TMPDIR") from error
        if error.errno == errno.EFBIG:
            raise too_large(why, size_bytes) from error
        raise
    except BaseException:
        file.close()
        raise


def too_large(why: str, max_bytes: int) -> UserError:
    """The error for a copy beyond its limit."""
    return UserError(f"{why}; a copy would exceed the limit of {max_bytes:,} bytes (limits.spool_bytes)")
