"""Quotas of containers, read from trees like those of /proc and /sys/fs/cgroup."""

from pathlib import Path

import pytest

from pipelines import machine
from pipelines.machine import cpu_quota

_V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
_V1_MOUNTS = (
    "31 30 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 {root} /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
)


def tree(root: Path, files: dict[str, str]) -> Path:
    """Files by their path below `root`."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def version_2(path: str, mount_root: str = "/") -> dict[str, str]:
    return {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": _V2_MOUNT.format(root=mount_root)}


def version_1(path: str, mount_root: str = "/") -> dict[str, str]:
    return {
        "proc/self/cgroup": f"5:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:/\n0::/\n",
        "proc/self/mountinfo": _V1_MOUNTS.format(root=mount_root),
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="no /proc"),
        pytest.param(version_2("/"), None, id="v2, topmost level has no cpu.max"),
        pytest.param(version_2("/") | {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, id="v2, namespace"),
        pytest.param(version_2("/") | {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None, id="v2, no quota"),
        pytest.param(
            version_2("/a/b")
            | {"sys/fs/cgroup/a/cpu.max": "200000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"},
            2.0,
            id="v2, of the parent",
        ),
        pytest.param(
            version_2("/docker/1f", "/docker/1f") | {"sys/fs/cgroup/cpu.max": "50000 100000\n"},
            0.5,
            id="v2, only the container's part is mounted",
        ),
        pytest.param(
            version_2("/host/path") | {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0, id="v2, path is not mounted"
        ),
        pytest.param(
            version_2("/../sibling") | {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0, id="v2, outside the namespace"
        ),
        pytest.param(
            version_1("/kubepods/1f")
            | {
                "sys/fs/cgroup/cpu,cpuacct/kubepods/1f/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/kubepods/1f/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/kubepods/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/kubepods/cpu.cfs_period_us": "100000\n",
            },
            4.0,
            id="v1",
        ),
        pytest.param(
            version_1("/docker/1f", "/docker/1f")
            | {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "25000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000",
            },
            0.5,
            id="v1, only the container's part is mounted",
        ),
        pytest.param(
            version_1("/") | {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "damaged"}, None, id="v1, unreadable"
        ),
    ],
)
def test_the_quota_is_the_smallest_of_all_levels(tmp_path: Path, files: dict[str, str], expected: float | None):
    assert cpu_quota(tree(tmp_path, files)) == expected


def test_a_hybrid_hierarchy_takes_the_quota_of_version_1(tmp_path: Path):
    files = version_1("/a") | {
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
    }
    files["proc/self/mountinfo"] += "40 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    assert cpu_quota(tree(tmp_path, files)) == 1.0


def test_a_fraction_of_a_cpu_is_rounded_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)))
    for quota, cpus in ((None, 64), (0.5, 1), (1.5, 2), (4.0, 4), (100.0, 64)):
        monkeypatch.setattr(machine, "cpu_quota", lambda quota=quota: quota)
        assert machine.usable_cpus() == cpus
