"""The CPU time of a scan is divided between its parts in proportion to their time."""

import time

import pytest

from curation.dataset.schemas import SCAN_PARTS
from curation.scan import part_times
from curation.scan.part_times import PartTimes


def test_cpu_time_is_divided_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s, cpu_s = iter([100.0, 103.0, 104.0, 107.0, 110.0]), iter([5.0, 7.0])
    monkeypatch.setattr(part_times.time, "perf_counter", lambda: next(clock_s))
    monkeypatch.setattr(part_times.time, "process_time", lambda: next(cpu_s))
    times = PartTimes()
    for part in ("decode", "cuts", "decode"):
        times.lap(part)
    expected = dict.fromkeys(SCAN_PARTS, 0.0) | {"decode": 2 * 6 / 10, "cuts": 2 * 1 / 10}
    assert times.cpu_s() == pytest.approx(expected)


def test_the_parts_are_no_more_than_the_whole() -> None:
    started_s = time.process_time()
    times = PartTimes()
    for i in range(200):
        sum(range(1000))
        times.lap(SCAN_PARTS[i % len(SCAN_PARTS)])
    parts = times.cpu_s()
    assert all(seconds > 0 for seconds in parts.values())
    assert sum(parts.values()) <= time.process_time() - started_s
