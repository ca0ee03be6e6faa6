"""A running Ray cluster of two node processes, reached through --address, loses one of them half way."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from clipmill import curate
from clipmill.errors import RunStopped
from pipelines.cluster import connected
from tests.pipelines.corpora import WITHOUT_CLIP, WITHOUT_CLIP_OPTION, content, many_small
from tests.pipelines.test_kill import kill, wait_for, workers

pytestmark = pytest.mark.slow

SOURCES = 30


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_a_node_dies_half_way(cluster: Cluster, local_ray: None, tmp_path: Path):
    second = cluster.add_node(num_cpus=1)
    videos, out = many_small(tmp_path / "in", SOURCES), tmp_path / "out"
    command = [sys.executable, "-m", "pipelines.cli", "curate", videos, "--out", out, "--address", cluster.address]
    command += WITHOUT_CLIP_OPTION
    run = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    wait_for(run, out / "sources", ".parquet", SOURCES // 3)
    raylet = second.all_processes["raylet"][0].process.pid
    victims = [pid for pid, _ in workers(raylet)]
    assert run.poll() is None
    assert victims, "the second node had no worker"
    for pid in (raylet, *victims):
        kill(pid)
    assert run.wait(300) == 0, run.stderr and run.stderr.read()
    curate([str(videos)], str(tmp_path / "calm"), config=WITHOUT_CLIP, quiet=True)
    assert content(str(out)) == content(str(tmp_path / "calm"))


def test_a_cluster_that_is_not_there_is_an_error(tmp_path: Path):
    videos = many_small(tmp_path / "in", 1)
    command = [sys.executable, "-m", "pipelines.cli", "curate", str(videos), "--out", str(tmp_path / "out")]
    command += WITHOUT_CLIP_OPTION
    run = subprocess.run([*command, "--address", "127.0.0.1:1"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "127.0.0.1:1" in run.stderr


def test_a_local_ray_that_does_not_start_is_worth_another_try(monkeypatch: pytest.MonkeyPatch):
    def timed_out(**_: Any) -> None:
        raise RuntimeError("The current node timed out during startup.\nlog of many lines")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", timed_out)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with (
        pytest.raises(RunStopped, match=r"cannot start Ray on this machine: .* timed out during startup\.$"),
        connected(),
    ):
        pass
