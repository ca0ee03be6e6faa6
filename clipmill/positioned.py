"""A read-only file of known size that keeps its own position."""

import errno
import io
import os


class Positioned(io.RawIOBase):
    """Base of files that are part of something else; subclasses read `size_bytes` at `position` and advance it."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self.position = size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size_bytes}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.position = position
        return position
