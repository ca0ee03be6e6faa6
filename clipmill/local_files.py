"""Open local files from untrusted names: regular files only, never devices, pipes or what the kernel answers."""

import os
import stat
from contextlib import suppress
from typing import BinaryIO

from clipmill.errors import UserError

_KERNEL_FOLDERS = ("/proc/", "/sys/", "/dev/")
_SHARED_MEMORY = "/dev/shm/"


def open_regular(path: str) -> BinaryIO:
    """Open a local file for reading, following links, if it is a regular file outside the kernel's file systems.

    The check is on the opened file, so a name that changes meanwhile does not matter. Raises OSError, and UserError for
    a folder, a device, a pipe, and everything below /proc, /sys and /dev except /dev/shm.
    """
    _check_regular(os.stat(path).st_mode)  # before opening: opening a device can have side effects
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(descriptor).st_mode)
        check_not_of_kernel(path_of(descriptor, path))
        return open(descriptor, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise


def path_of(descriptor: int, path: str) -> str:
    """The resolved path of an open file; `path` is the name it was opened by."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return os.path.realpath(path)


def check_not_of_kernel(real_path: str) -> None:
    """Raise UserError for a resolved path below /proc, /sys or /dev."""
    if real_path.startswith(_KERNEL_FOLDERS) and not real_path.startswith(_SHARED_MEMORY):
        raise UserError(f"files below /{real_path.split('/')[1]} are not read")


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UserError("this is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise UserError("this is a device or a pipe, not a file")
