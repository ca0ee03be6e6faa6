"""Runs that read from and live in an object store: killed at any moment and resumed, they end as those on a disk."""

import json
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from benchmarks.faults.network import FaultyStore
from tests.training.latents import write_latents
from tests.training.test_remote_shards import upload
from tests.training.worker import STOPPED, start, wait

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "run": {"steps": 12, "batch_size": 4, "save_every": 4},
    "data": {"workers": 1, "read_ahead_mib": 0.05},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def bucket(shards: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    url: str = request.getfixturevalue(getattr(request, "param", "s3_url"))
    upload(shards, f"{url}/shards")
    return url


@pytest.fixture
def faulty(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """Ranks reach the store through a proxy that fails often; this process does not."""
    store = FaultyStore(seed=5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    yield store
    store.close()


def losses(lines: str) -> list[float]:
    records = [json.loads(line) for line in lines.splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def start_and_wait_for(lines: int, log: Path, *args: Any, **kwargs: Any) -> list[BaseProcess]:
    """Ranks that have logged so many steps."""
    processes = start(*args, **kwargs)
    deadline = time.monotonic() + 200
    while not (log.is_file() and log.read_text().count("\n") >= lines):
        assert time.monotonic() < deadline
        assert all(process.exitcode is None for process in processes)
        time.sleep(0.005)
    return processes


def weights(out: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(out / "weights.pt", weights_only=True)
    return loaded


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("count", [1, 2])
def test_shards_in_a_failing_store_give_the_run_of_the_disk(
    tmp_path: Path, shards: Path, bucket: str, faulty: FaultyStore, count: int
) -> None:
    """Begun on the disk, killed with -9 in mid-shard, resumed from the store with faults, stopped, resumed again."""
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "killed" / "metrics.jsonl"
    assert wait(start(whole, SETTINGS, count, data=str(shards))) == [0] * count
    processes = start_and_wait_for(random.Random(count).randint(5, 7), log, killed, SETTINGS, count, data=str(shards))
    for process in processes:
        process.kill()
    assert wait(processes) == [-signal.SIGKILL] * count
    with faulty.faulty(0.4):
        processes = start_and_wait_for(9, log, killed, SETTINGS, count, data=f"{bucket}/shards")
        processes[-1].terminate()
        assert wait(processes) == [STOPPED] * count
        assert wait(start(killed, SETTINGS, count, data=f"{bucket}/shards")) == [0] * count
    assert faulty.faults > 0
    assert losses(log.read_text()) == losses((whole / "metrics.jsonl").read_text())
    assert equal(weights(killed), weights(whole))


@pytest.mark.parametrize(("bucket", "count"), [("s3_url", 1), ("s3_url", 2), ("gcs_url", 1)], indirect=["bucket"])
def test_a_run_in_the_store_is_killed_and_resumed_as_on_a_disk(
    tmp_path: Path, shards: Path, bucket: str, count: int
) -> None:
    whole, out, url = tmp_path / "whole", tmp_path / "out", f"{bucket}/run"
    out.mkdir()
    assert wait(start(whole, SETTINGS, count, data=str(shards))) == [0] * count
    seen = out / "seen.jsonl"
    where: dict[str, Any] = {"data": f"{bucket}/shards", "run_url": url}
    processes = start_and_wait_for(7, seen, out, SETTINGS, count, **where)
    for process in processes:
        process.kill()
    assert wait(processes) == [-signal.SIGKILL] * count
    seen.unlink()
    assert wait(start(out, SETTINGS, count, **where)) == [0] * count
    assert json.loads((out / "resumed.json").read_text()) in (0, 4)
    fs, _ = fsspec.url_to_fs(url)
    assert losses(fs.cat_file(f"{url}/metrics.jsonl").decode()) == losses((whole / "metrics.jsonl").read_text())
    assert equal(weights(out), weights(whole))
    checkpoints = {path.rpartition("/")[2] for path in fs.ls(f"{url}/checkpoints", refresh=True)}
    assert checkpoints == {"step-00000008", "step-00000012"}
    files = {path.rpartition("/")[2] for path in fs.ls(f"{url}/checkpoints/step-00000012")}
    assert files == {".metadata", "checkpoint.json", *(f"rank-{r}.pt" for r in range(count))} | {
        f"__{r}_0.distcp" for r in range(count)
    }
    assert not list((tmp_path / "caches" / "clipmill" / "runs").glob("*/rank-*"))
