"""Resources of this machine, or of the container that this process runs in."""

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

T = TypeVar("T", int, float)

SHARED_MEMORY = "/dev/shm"


def usable_cpus() -> int:
    """Number of CPUs that this process may use: its CPU affinity, and the CPU quota of its container, rounded up."""
    available = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return available if quota is None else max(1, min(available, math.ceil(quota)))


def usable_memory_bytes() -> int:
    """Memory that this process may use: that of the machine, or the limit of its container."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(total, memory_limit_bytes() or total)


def free_bytes(folder: str) -> int:
    """Free space on the file system of a folder; 0 if it cannot be read."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs granted by the cgroups of this process (version 1 or 2), the smallest of all levels; None without a quota.

    Kubernetes (`limits.cpu`), Docker (`--cpus`) and systemd (`CPUQuota=`) set one. It bounds CPU time rather than the
    CPUs that a process runs on, so the CPU affinity does not show it. `root` is where /proc and /sys are found.
    """
    return min(_limits(root, "cpu", _quota_of), default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Memory limit of the cgroups of this process, the smallest of all levels; None without a limit."""
    return min(_limits(root, "memory", _memory_limit_of), default=None)


def _quota_of(cgroup: Path) -> float | None:
    """Quota of one level. cpu.max holds "MICROSECONDS PERIOD" or "max PERIOD"; version 1 has a file for each."""
    with suppress(OSError, ValueError):  # no such file: the other version, or the topmost level
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else _ratio(quota, period)
    with suppress(OSError, ValueError):
        return _ratio((cgroup / "cpu.cfs_quota_us").read_text(), (cgroup / "cpu.cfs_period_us").read_text())
    return None


def _ratio(quota: str, period: str) -> float | None:
    """Version 1 writes -1 for no quota."""
    quota_us, period_us = int(quota), int(period)
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _memory_limit_of(cgroup: Path) -> int | None:
    """Limit of one level; without one, "max", or in version 1 a number beyond any machine's memory."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            return int((cgroup / name).read_text())
    return None


def _limits(root: Path, controller: str, limit_of: Callable[[Path], T | None]) -> Iterator[T]:
    for folder in _cgroups(root, controller):
        limit = limit_of(folder)
        if limit is not None:
            yield limit


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the cgroups of this process with a controller, from its own up to the topmost that is mounted.

    /proc/self/cgroup has its path in each hierarchy and /proc/self/mountinfo where a hierarchy is mounted. Without a
    cgroup namespace the path is the host's while only the container's part is mounted; the mount's root tells which.
    """
    with suppress(OSError, ValueError):
        paths = dict(_own_paths((root / "proc/self/cgroup").read_text()))
        for line in (root / "proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.split()[:3]
            hierarchy = {"cgroup2": "", "cgroup": controller}.get(kind)
            if hierarchy is None or hierarchy not in paths or (hierarchy and hierarchy not in options.split(",")):
                continue
            mount_root, mount_point = (field.replace("\\040", " ") for field in before.split()[3:5])
            mounted = root / mount_point.lstrip("/")
            inside = _inside(PurePosixPath(paths[hierarchy]), PurePosixPath(mount_root))
            yield from (mounted / level for level in (inside, *inside.parents) if (mounted / level).is_dir())


def _own_paths(proc_cgroup: str) -> Iterator[tuple[str, str]]:
    """(controller, path) of lines such as "3:cpu,cpuacct:/a" and, for version 2, "0::/a"."""
    for line in proc_cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        yield from ((controller, path) for controller in controllers.split(","))


def _inside(path: PurePosixPath, mount_root: PurePosixPath) -> PurePosixPath:
    """`path` below the root of a mount; the mount itself if it lies elsewhere."""
    if path.is_relative_to(mount_root) and ".." not in path.parts:
        return path.relative_to(mount_root)
    return PurePosixPath()
