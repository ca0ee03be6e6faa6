"""Stand-ins for a scan whose native code misbehaves; importable, so that they run in the scanning child."""

import ctypes
import os
import tempfile
import time
from typing import Any, NoReturn

from clipmill.spool import Spool


def hang(*_: Any) -> NoReturn:
    """A decoder that never returns."""
    while True:
        time.sleep(1)


def segfault(*_: Any) -> None:
    """A decoder that takes its process down."""
    ctypes.string_at(0)


def leave(*_: Any) -> NoReturn:
    """Native code that ends the process by itself."""
    os._exit(3)


def fill_memory(*_: Any) -> None:
    """A decoder that allocates without end."""
    kept = []
    while True:
        kept.append(bytearray(64 << 20))


def fill_disk(*_: Any) -> None:
    """A temporary folder that takes no more."""
    tempfile.tempdir = "/proc/self/nowhere"
    with Spool(in_memory_bytes=1) as spool:
        spool.put(b"pictures")
