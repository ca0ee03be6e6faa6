"""Size and checksum of a file while it is written."""

import hashlib
from typing import BinaryIO


class Summed:
    """Counts and hashes what is written, and passes it on to a file if there is one."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file, self.bytes, self.digest = file, 0, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.bytes += len(content)
        return self._file.write(content) if self._file else len(content)
