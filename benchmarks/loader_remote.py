"""Samples per second, requests and bytes of shards on a web server, compared with the same shards on the local disk.

Called by `python -m benchmarks.loader --remote`. The server is a process of its own that waits before each answer, as a
store at some distance does. Ranks are simulated in turns in one process: each has a reader and a read-ahead of its own,
as in training. There is no cache, so that all bytes come from the server.
"""

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.common import report
from benchmarks.range_server import serving
from clipmill.formats import SHARDS
from clipmill.range_reader import RangeReader
from clipmill.shard_folder import Members, ShardRecord, index_of, write_index
from training.data import Batches, loader
from training.data_config import DataConfig
from training.remote_shards import reader_for
from training.shard_index import index_shards
from training.shards import ShardIndex

RANKS = (1, 8, 64)
READ_AHEAD_SAMPLES = 2
"""Per rank. A training run reads further ahead; so little makes the store work all the time, however many ranks."""


def write_offsets(shards: Path) -> None:
    """index.json with the byte ranges of all samples, as `clipmill shard` writes it."""
    records = []
    for shard in index_shards(shards).shards:
        rows = range(len(shard))
        ranges = {name: tuple(shard.ranges(row).get(name) for row in rows) for name in shard.extensions}
        members = Members(keys=tuple(shard.keys[row] for row in rows), ranges=ranges)
        records.append(
            ShardRecord(name=f"{shard.name}.tar", samples=len(shard), bytes=shard.size_bytes, members=members)
        )
    write_index(str(shards), index_of(SHARDS.describe(), records))


def read(index: ShardIndex, config: DataConfig, ranks: int, samples: int) -> dict[str, float]:
    """Read about `samples` in turns by all ranks; the first turn, which fills the read-ahead, does not count. There are
    at least as many turns as samples read ahead: fewer would measure what the first turn has read.
    """
    readers: list[Batches] = [loader(index, config, rank=rank, world_size=ranks) for rank in range(ranks)]
    batches = [iter(reader) for reader in readers]
    for each in batches:
        next(each)
    store, turns = reader_for(config), max(READ_AHEAD_SAMPLES, samples // (ranks * config.batch_size))
    before, started_s = _traffic(store), time.perf_counter()
    for each in itertools.chain.from_iterable(itertools.repeat(batches, turns)):
        next(each)
    seconds, count = time.perf_counter() - started_s, turns * ranks * config.batch_size
    requests, read_bytes, wanted_bytes, wanted = (now - then for now, then in zip(_traffic(store), before, strict=True))
    return {"samples_per_s": count / seconds} | (
        {
            "requests_per_sample": requests / wanted,
            "bytes_per_sample": read_bytes / wanted,
            "read_amplification": read_bytes / wanted_bytes,
        }
        if wanted
        else {}
    )


def _traffic(store: RangeReader) -> tuple[int, int, int, int]:
    return store.requests, store.read_bytes, store.wanted_bytes, store.wanted


def compare(shards: Path, config: DataConfig, *, runs: int, samples: int, delay_ms: float) -> None:
    """Print the figures of each number of ranks; the last line is the worst of each as JSON."""
    write_offsets(shards)
    local = index_shards(shards)
    mean_bytes = sum(shard.size_bytes for shard in local.shards) / len(local)
    ahead_mib = READ_AHEAD_SAMPLES * mean_bytes / 2**20
    config = config.replace(batch_size=1, workers=0, cache_gib=0.0, read_ahead_mib=ahead_mib)
    rows: list[tuple[Any, ...]] = []
    figures: dict[str, Any] = {}
    with serving(shards, delay_ms=delay_ms) as url:
        remote = index_shards(url)
        for ranks in RANKS:
            found = [(read(local, config, ranks, samples), read(remote, config, ranks, samples)) for _ in range(runs)]
            ratio = statistics.median(there["samples_per_s"] / here["samples_per_s"] for here, there in found)
            here = statistics.median(run[0]["samples_per_s"] for run in found)
            there = {name: statistics.median(run[1][name] for run in found) for name in found[0][1]}
            rows.append(
                (
                    ranks,
                    here,
                    there["samples_per_s"],
                    ratio,
                    there["requests_per_sample"],
                    there["bytes_per_sample"] / 1e6,
                    there["read_amplification"],
                )
            )
            figures[f"ranks_{ranks}"] = {name: round(value, 4) for name, value in there.items()} | {
                "remote_over_local": round(ratio, 3)
            }
    columns = ("ranks", "disk, samples/s", "server, samples/s", "ratio", "requests/sample", "MB/sample", "read/needed")
    worst = {
        "remote_over_local": min(each["remote_over_local"] for each in figures.values()),
        "read_amplification": max(each["read_amplification"] for each in figures.values()),
    }
    report(f"shards on a web server that answers after {delay_ms:g} ms", columns, rows, worst | figures)
