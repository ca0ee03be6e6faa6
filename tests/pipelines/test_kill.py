"""Exactly once, whatever dies: kill -9 the driver or a worker at random moments, run again, compare with a calm run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from benchmarks.faults.endpoint import FaultyEndpoint
from clipmill import caption, curate, score, select, shard
from curation.dataset.joined import view_of
from curation.dataset.tables import Dataset
from curation.selection.rules import Rules
from pipelines.config import CurateConfig
from tests.pipelines.corpora import WITHOUT_CLIP, WITHOUT_CLIP_OPTION, content, many_small, shard_content

pytestmark = pytest.mark.slow

SOURCES = 36
EVERYTHING = Rules(name="all", rules={"duration_s": {"min": 0}})


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_small(tmp_path_factory.mktemp("kill") / "in", SOURCES)


@pytest.fixture(scope="module")
def calm(videos: Path, tmp_path_factory: pytest.TempPathFactory, local_ray) -> Path:
    """A dataset made without any disturbance."""
    out = tmp_path_factory.mktemp("calm") / "out"
    curate([str(videos)], str(out), config=WITHOUT_CLIP, quiet=True)
    select(str(out), EVERYTHING)
    shard(str(out), "all", quiet=True)
    return out


def start(*arguments: object, address: str | None = None) -> subprocess.Popen[bytes]:
    """Run a command on the Ray cluster at `address`; without one it starts a Ray of its own."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    environment = os.environ | ({"RAY_ADDRESS": address} if address else {})
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )


def wait_for(run: subprocess.Popen[bytes], folder: Path, suffix: str, count: int) -> None:
    """Until that many files are in place, or the run is over."""
    deadline = time.monotonic() + 400
    while run.poll() is None and len(list(folder.glob(f"[!.]*{suffix}"))) < count:
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.01)


def workers(driver: int) -> Iterator[tuple[int, str]]:
    """(pid, name) of the Ray worker processes below a driver, and of the scanning children below those."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, name = (entry / "stat").read_text(), (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1]), name
    for pid, (parent, name) in parents.items():
        above, is_below, below_worker = parent, False, False
        while above in parents:
            is_below |= above == driver
            below_worker |= parents[above][1].startswith("ray::")
            above = parents[above][0]
        # Without its agents a node of Ray shuts down, by design; its actors of its own begin with an underscore.
        ours = name.startswith("ray::") and not name.endswith("Agent") and not name.startswith("ray::_")
        if is_below and (ours or below_worker):
            yield pid, name


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_kill_9_the_driver_at_random_moments(videos: Path, calm: Path, tmp_path: Path):
    """Of a Ray of its own, and on a cluster, where tasks may outlive their driver."""
    chance, out = random.Random(7), tmp_path / "out"
    killed, cluster = 0, ray.get_runtime_context().gcs_address
    kills = {
        0: None,
        chance.randrange(1, 8): None,
        chance.randrange(10, 20): cluster,
        chance.randrange(22, 32): cluster,
    }
    for parts, address in kills.items():
        run = start("curate", videos, "--out", out, *WITHOUT_CLIP_OPTION, address=address)
        wait_for(run, out / "sources", ".parquet", parts)
        time.sleep(chance.uniform(0, 0.2 if parts else 4.0))
        killed += run.poll() is None
        kill(run.pid)
        run.wait()
    assert killed >= 3
    assert start("curate", videos, "--out", out, *WITHOUT_CLIP_OPTION, address=cluster).wait(180) == 0
    assert content(str(out)) == content(str(calm))
    assert start("curate", videos, "--out", out, *WITHOUT_CLIP_OPTION).wait(60) == 0
    assert content(str(out)) == content(str(calm))

    select(str(out), EVERYTHING)
    sharding = ("shard", out, "--selection", "all", "--clips-per-shard", 6)
    for shards in (1, 3):
        run = start(*sharding, address=cluster)
        wait_for(run, out / "shards" / "all", ".tar", shards)
        kill(run.pid)
        run.wait()
    assert start(*sharding, address=cluster).wait(180) == 0
    assert shard_content(out / "shards" / "all") == shard_content(calm / "shards" / "all")
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


SLOW = {
    "score": (f"{Path(__file__).with_name('scorers.py')}:SlowLuma", "scores/slow_luma"),
    "caption": (f"{Path(__file__).with_name('captioners.py')}:SlowLevels", "captions/slow_levels"),
}
"""Command -> a plug-in that takes its time, and its tables."""


@pytest.mark.parametrize("command", SLOW)
def test_kill_9_while_scores_or_captions_are_added(command: str, calm: Path, tmp_path: Path):
    """The driver, of a Ray of its own and on a cluster, and workers; each clip has one row in the end."""
    chance, out = random.Random(5), shutil.copytree(calm, tmp_path / "out", ignore=shutil.ignore_patterns("shards"))
    plugin, root = SLOW[command]
    table, versions = out / root / "v1", out / root / "versions.json"
    adding = (command, out, "--scorer" if command == "score" else "--captioner", plugin)
    killed, cluster = 0, ray.get_runtime_context().gcs_address
    for parts, address in {
        0: None,
        2: None,
        chance.randrange(5, 10): cluster,
        chance.randrange(14, 20): cluster,
    }.items():
        run = start(*adding, address=address)
        wait_for(run, table, ".parquet", parts)
        time.sleep(chance.uniform(0, 0.2 if parts else 8.0))
        killed += run.poll() is None
        kill(run.pid)
        run.wait()
        assert not counts_twice(out, root), "a clip is there twice"
    assert killed >= 3
    assert '"finished": false' in versions.read_text()
    run = start(*adding)
    wait_for(run, table, ".parquet", len(list(table.glob("[!.]*.parquet"))) + 2)
    found = sorted(workers(run.pid))
    if found and run.poll() is None:
        kill(chance.choice(found)[0])
    assert run.wait(180) == 0
    assert '"finished": true' in versions.read_text()
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]

    undisturbed = shutil.copytree(calm, tmp_path / "undisturbed", ignore=shutil.ignore_patterns("shards"))
    {"score": score, "caption": caption}[command](str(undisturbed), plugin, quiet=True)
    assert added(out, root) == added(undisturbed, root)
    assert content(str(out)) == content(str(calm))


def test_kill_9_the_driver_and_the_endpoint_of_a_captioner(calm: Path, tmp_path: Path):
    """Each clip has its caption in the end, whatever the endpoint answered in between."""
    chance, copy = random.Random(3), shutil.ignore_patterns("shards")
    out, undisturbed = (shutil.copytree(calm, tmp_path / name, ignore=copy) for name in ("out", "undisturbed"))
    endpoint, config = FaultyEndpoint(seed=4), tmp_path / "captions.yaml"
    try:
        config.write_text(yaml.safe_dump({"captioners": {"video": endpoint.config()}}))
        caption(str(undisturbed), "video", config=CurateConfig.from_file(str(config)), quiet=True)
        expected = texts(undisturbed)
        assert len(set(expected.values())) == len(expected)
        captioning = ("caption", out, "--captioner", "video", "--config", config, "--retry-failed")
        cluster, killed = ray.get_runtime_context().gcs_address, 0
        with endpoint.faulty(0.3):
            for parts in (1, 12, 24):
                run = start(*captioning, address=cluster)
                wait_for(run, out / "captions" / "video" / "v1", ".parquet", parts)
                time.sleep(chance.uniform(0, 1))
                killed += run.poll() is None
                kill(run.pid)
                run.wait()
                found = texts(out)
                assert {i: text for i, text in found.items() if text is not None and text != expected[i]} == {}
                assert not counts_twice(out, "captions/video")
        assert killed
        assert endpoint.kills
        assert start(*captioning, address=cluster).wait(180) == 0
        assert texts(out) == expected
    finally:
        endpoint.close()


def texts(out: Path) -> dict[str, str | None]:
    return {row[0]: row[1] for row in added(out, "captions/video", "clip_id, video_caption")}


def counts_twice(out: Path, root: str) -> list[str]:
    """Clips with several rows in the first version of a score or captioner."""
    query = f'SELECT clip_id FROM "{view_of(root, 1)}" GROUP BY 1 HAVING count(*) > 1'
    with Dataset(str(out)).connect() as connection:
        there = connection.execute("SELECT count(*) FROM score_versions WHERE view = ?", [view_of(root, 1)]).fetchone()
        return [clip_id for (clip_id,) in connection.execute(query).fetchall()] if there != (0,) else []


def added(out: Path, root: str, columns: str = "*") -> list[tuple]:
    with Dataset(str(out)).connect() as connection:
        return connection.execute(f'SELECT {columns} FROM "{view_of(root, 1)}" ORDER BY clip_id').fetchall()


def test_kill_9_workers_and_scanning_children(videos: Path, calm: Path, tmp_path: Path):
    chance, out = random.Random(11), tmp_path / "out"
    run = start("curate", videos, "--out", out, *WITHOUT_CLIP_OPTION)
    killed: list[str] = []
    for parts in (0, 2, 10, 20):
        wait_for(run, out / "sources", ".parquet", parts)
        if not parts:
            time.sleep(chance.uniform(2, 4))
        pids = sorted(workers(run.pid))
        if run.poll() is None and pids:
            pid, name = chance.choice(pids)
            killed.append(name)
            kill(pid)
    assert run.wait(240) == 0
    assert len(killed) >= 2
    assert content(str(out)) == content(str(calm))
