"""Whether processes, which need not be children, are there."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(seconds: float, pids: Sequence[int]) -> bool:
    deadline_s = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return not any(map(is_running, pids))


def end(pids: Sequence[int]) -> None:
    """Kill those that still run."""
    for pid in filter(is_running, pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
