"""Costs of stages: counted where the work is done, child processes included."""

import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from clipmill import costs
from clipmill.costs import Cost, as_values, charge, charge_all, cpu_s, measured, take, unwatch, watch
from clipmill.pipeline import Stage, loaded

BUSY_S = 0.2


def busy(seconds: float = BUSY_S) -> None:
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass


@pytest.fixture(autouse=True)
def nothing_spent() -> None:
    take()


def test_a_block_counts_its_time_and_what_was_charged_is_taken_once() -> None:
    with measured("busy", items=2, gpus=0.5):
        busy()
    time.sleep(0.1)
    with measured("idle"):
        time.sleep(0.2)
    charge("busy", Cost(tokens_in=7))
    taken = take()
    assert BUSY_S <= taken["busy"].cpu_s < 2 * BUSY_S
    assert taken["busy"].gpu_s == pytest.approx(taken["busy"].wall_s / 2)
    assert (taken["busy"].items, taken["busy"].tokens_in) == (2, 7)
    assert taken["idle"].cpu_s < 0.1 < taken["idle"].wall_s
    assert take() == {}
    charge_all(taken)
    charge_all(taken)
    assert take()["busy"].items == 4


def test_blocks_that_overlap_count_their_common_time_once() -> None:
    begun, done = threading.Event(), threading.Event()

    def waits() -> None:
        with measured("other"):
            begun.set()
            done.wait(60)

    other = threading.Thread(target=waits)
    started_s = time.monotonic()
    other.start()
    begun.wait(60)
    with measured("busy"):
        busy()
    done.set()
    other.join()
    elapsed_s, taken = time.monotonic() - started_s, take()
    assert taken["busy"].cpu_s >= BUSY_S
    assert taken["other"].cpu_s < BUSY_S / 2
    assert taken["busy"].wall_s + taken["other"].wall_s <= elapsed_s


def test_a_failing_block_has_cost_its_time() -> None:
    @measured("broken")
    def breaks() -> None:
        busy()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        breaks()
    assert take()["broken"].cpu_s >= BUSY_S


def test_a_child_counts_while_it_lives_and_after_it_was_reaped() -> None:
    work = "import time\nwhile time.process_time() < 0.6: pass\nprint('done', flush=True)\ninput()"
    before_s = cpu_s()
    child = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    watch(child.pid)
    assert child.stdout is not None
    child.stdout.readline()
    living_s = cpu_s() - before_s
    child.communicate(b"\n")
    unwatch(child.pid)
    reaped_s = cpu_s() - before_s
    assert 0.5 <= living_s <= reaped_s < living_s + 0.5
    assert child.pid not in costs._children


def test_stages_that_share_a_worker_count_apart() -> None:
    def stage(name: str, seconds: float, divide: Any = None) -> Stage:
        def load(device: str) -> Any:
            return lambda items: busy(seconds) or items

        return Stage(name=name, needs=(), gives=(), load=load, divide=divide)

    assert loaded([stage("first", 0.1), stage("second", 0.2)], "cpu")([1, 2, 3]) == [1, 2, 3]
    taken = take()
    assert 0.1 <= taken["first"].cpu_s < 0.2 <= taken["second"].cpu_s < 0.4
    assert taken["second"].items == 3
    pieces = [stage("first", 0.1, divide=iter), stage("second", 0.0, divide=iter)]
    loaded(pieces, "cpu", gpus=1.0)([1, 2])
    taken = take()
    assert taken["first"].cpu_s >= 0.2
    assert taken["first"].gpu_s == taken["first"].wall_s


def test_values_for_json_are_rounded() -> None:
    assert as_values({"b": Cost(cpu_s=1 / 3), "a": Cost(items=2)}) == {
        "a": {"cpu_s": 0, "wall_s": 0, "gpu_s": 0, "items": 2, "tokens_in": 0, "tokens_out": 0},
        "b": {"cpu_s": 0.333, "wall_s": 0, "gpu_s": 0, "items": 0, "tokens_in": 0, "tokens_out": 0},
    }
