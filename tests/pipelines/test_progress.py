"""What a run says while it works: what it waits for, how much is done, which nodes are gone."""

import threading
import time
from pathlib import Path

import pytest

from clipmill import inspect
from pipelines import progress
from pipelines.counting import counted
from pipelines.progress import Reporter
from tests.media import panning, write_video
from tests.pipelines.corpora import WITHOUT_CLIP

REAL_LOCALTIME = time.localtime


def test_a_log_names_what_is_waited_for_and_each_count_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter("shard", unit="clips") as report:
        report.waiting("starting Ray")
        report.begin(5)
        report.reached(3)
        report.reached(2)  # a task that was run again
        report.waiting("writing the index")
        report.detail("1 of 1 shards")
        report.waiting("closing")
    lines = [line.partition(" after ") for line in capsys.readouterr().err.splitlines()]
    assert [first for first, _, _ in lines] == [
        "shard: starting Ray",
        "shard: 0/5 clips",
        "shard: 3/5 clips",
        "shard: writing the index",
        "shard: 3/5 clips",
        "shard: closing",
    ]
    assert lines[4][2].endswith(", 1 of 1 shards")


def test_a_quiet_one_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter("shard", unit="clips", quiet=True) as report:
        report.waiting("starting Ray")
        report.begin(5)
        report.advance(5)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_inspect_says_that_it_loads_models_and_stdout_stays_for_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "a.mp4", panning(height=90, pixels_per_frame=2, frames=30))
    list(inspect([str(video)], WITHOUT_CLIP))
    printed = capsys.readouterr()
    assert printed.err == "inspect: listing the inputs\ninspect: loading the models\n"
    assert printed.out == ""


@pytest.mark.slow
def test_work_that_is_done_twice_counts_once(local_ray: None) -> None:
    seen, all_seen = [], threading.Event()

    def on_count(count: int) -> None:
        seen.append(count)
        if count == 4:
            all_seen.set()

    with counted(9, on_count, lambda address: None) as counter:
        counter.add.remote(0, 1, 2)
        counter.add.remote(2)
        counter.add.remote(1, 8)
        assert all_seen.wait(60)
    assert max(seen) == 4


def test_a_line_says_when_the_run_will_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter is done after ten minutes of work, which began later than the run."""
    now = {"monotonic": 100.0, "time": time.mktime((2026, 3, 1, 9, 0, 0, 0, 0, -1))}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now["monotonic"])
    monkeypatch.setattr(progress.time, "time", lambda: now["time"])
    monkeypatch.setattr(progress.time, "localtime", lambda s=None: REAL_LOCALTIME(now["time"] if s is None else s))
    with Reporter("curate", unit="sources") as report:
        now["monotonic"] += 500
        report.begin(80)
        now["monotonic"], now["time"] = now["monotonic"] + 600, now["time"] + 600
        report.reached(20)
        assert report.end_time_s() == now["time"] + 1800
        now["monotonic"] += 11
        report.detail("much slower")
        now["monotonic"] += 86_400
        report.reached(21)
        report.reached(80)
        assert report.end_time_s() is None
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "curate: 20/80 sources after 1100 s, ends about 09:40"
    assert ", ends about 2026-03-" in lines[-2]
    assert "ends" not in lines[-1]
