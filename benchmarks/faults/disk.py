"""Full-disk simulation: a memory file system for the output, resized while mounted."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOMY_BYTES = 1 << 30


class SmallDisk:
    """A tmpfs at `folder`. Mounting requires root; otherwise `can_fill` is False and the folder is an ordinary one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.can_fill = os.geteuid() == 0 and self._mount(
            "-t", "tmpfs", "-o", f"size={_ROOMY_BYTES}", "clipmill-faults"
        )

    @contextmanager
    def nearly_full(self, room_bytes: int) -> Iterator[None]:
        """Within the block, leave room for this many more bytes, in whole pages."""
        stat = os.statvfs(self.folder)
        used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        self._mount("-o", f"remount,size={used + room_bytes}")
        try:
            yield
        finally:
            self._mount("-o", f"remount,size={_ROOMY_BYTES}")

    def close(self) -> None:
        """Unmount it with its content."""
        if self.can_fill:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def _mount(self, *options: str) -> bool:
        return subprocess.run(["mount", *options, str(self.folder)], capture_output=True, check=False).returncode == 0
