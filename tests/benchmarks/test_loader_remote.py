"""The benchmark of shards on a web server: what it serves, and what it counts."""

import urllib.request
from pathlib import Path

import pytest

from benchmarks.loader_remote import read, write_offsets
from benchmarks.range_server import serving
from tests.training.latents import write_latents
from training.data_config import DataConfig
from training.shard_index import index_shards

CONFIG = DataConfig(
    frames=3, height_px=32, width_px=48, fps=(8.0,), batch_size=1, workers=0, cache_gib=0, read_ahead_mib=0.25
)


@pytest.mark.slow
def test_requests_and_bytes_are_those_of_the_samples(tmp_path: Path) -> None:
    shards = write_latents(tmp_path / "shards", sizes=(20,))
    write_offsets(shards)
    (here,) = index_shards(shards).shards
    needed = sum(size for row in range(20) for _, size in here.ranges(row).values())
    with serving(shards, delay_ms=1) as url:
        request = urllib.request.Request(f"{url}/latents-0.tar", headers={"Range": "bytes=512-611"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert (answer.status, answer.read()) == (206, (shards / "latents-0.tar").read_bytes()[512:612])
        remote, local = index_shards(url), index_shards(shards)
        found = read(remote, CONFIG, 2, 40)
    assert found["requests_per_sample"] <= 1
    assert 1 <= found["read_amplification"] < 1.2
    assert found["bytes_per_sample"] == pytest.approx(found["read_amplification"] * needed / 20, rel=0.1)
    assert set(read(local, CONFIG, 2, 40)) == {"samples_per_s"}
