"""Processes of a run: candidates to kill, and those left after the run was killed."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "CLIPMILL_FAULTS_RUN"
"""Environment variable that identifies all processes of a run."""
_LEFTOVERS_S, _POLL_S = 30.0, 0.2


def kill(pid: int) -> bool:
    """kill -9. Returns False if the process has already ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def victims(driver: int) -> list[tuple[int, str]]:
    """(pid, "worker" or "child") of Ray's workers below a driver, and of their scanning children."""
    parents, names = _tree()
    pids = []
    for pid in sorted(parents):
        above = list(_above(pid, parents))
        if driver not in above:
            continue
        if any(names.get(other, "").startswith("ray::") for other in above[: above.index(driver)]):
            pids.append((pid, "child"))
        # A Ray node shuts down without its agents, by design; names of Ray's own actors start with an underscore.
        elif (
            names[pid].startswith("ray::") and not names[pid].endswith("Agent") and not names[pid].startswith("ray::_")
        ):
            pids.append((pid, "worker"))
    return pids


def clear_up(run: str) -> None:
    """Wait for the processes left by a run, and kill those that remain."""
    deadline = time.monotonic() + _LEFTOVERS_S
    while left := _marked(run):
        if time.monotonic() > deadline:
            for pid in left:
                kill(pid)
        time.sleep(_POLL_S)


def _tree() -> tuple[dict[int, int], dict[int, str]]:
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                name = (entry / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            except OSError:
                continue
            if state != "Z":
                parents[int(entry.name)], names[int(entry.name)] = int(parent), name
    return parents, names


def _above(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


def _marked(run: str) -> list[int]:
    mark, pids = f"{MARK}={run}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    pids.append(int(entry.name))
            except OSError:
                continue
    return pids
