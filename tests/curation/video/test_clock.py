"""The time line of a stream, in closed form and as invariants."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.video.clock import MAX_LOOK_AHEAD, Clock, Stamp, Tick

BASE = Fraction(1, 1000)
HOUR = 3_600_000


def run(stamps: list[Stamp], **options: object) -> list[Tick]:
    clock = Clock(BASE, **{"usual_duration": 40} | options)  # type: ignore[arg-type]
    ticks = [tick for stamp in stamps for tick in clock.push(stamp)]
    return ticks + clock.finish()


def times(pts: list[int | None], **options: object) -> list[int]:
    return [tick.pts for tick in run([Stamp(p, None, 40) for p in pts], **options)]


def steady(frames: int, start: int = 0, step: int = 40) -> list[int]:
    return [start + step * i for i in range(frames)]


@pytest.mark.parametrize(
    "pts",
    [
        steady(30),
        steady(30, -200),
        steady(30, 1 << 62),
        [0, 17, 33, 50, 400, 410, 5_000, 5_001],  # variable frame rate
        [*steady(20), 30_000, 60_000, 61_000],  # stills
        [*steady(20), *steady(20, HOUR)],  # a gap
        [7],
    ],
)
def test_timestamps_that_rise_are_left_alone(pts: list[int]):
    ticks = run([Stamp(p, None, 40) for p in pts])
    assert [tick.pts for tick in ticks] == pts
    assert not any(tick.rebuilt or tick.joint for tick in ticks)


def test_missing_timestamps_continue_by_the_duration():
    assert times([None] * 30) == steady(30)
    assert times([400, *[None] * 20], usual_duration=40) == steady(21, 400)


def test_frames_before_the_first_timestamp_precede_it():
    assert times([None, None, *steady(20, 1000)]) == steady(22, 920)


@pytest.mark.parametrize("missing", [1, 2, 5])
def test_missing_timestamps_fill_the_interval_evenly(missing: int):
    pts = [*steady(20), *[None] * missing, *steady(20, 760 + 20 * (missing + 1))]
    assert times(pts)[20 : 20 + missing] == [760 + 20 * (i + 1) for i in range(missing)]
    assert times(pts)[20 + missing :] == pts[20 + missing :]


def test_two_identical_timestamps_are_two_frames():
    assert times([0, 40, 40, 120, 160, *steady(9, 200)]) == steady(14)
    assert times([0, 33, 33, 66, 100, 133, 133, 134, 200]) == [0, 33, 49, 66, 100, 133, 134, 167, 200]


@pytest.mark.parametrize("wrong", [0, 680, 900, 3 * HOUR, -3 * HOUR, 1 << 63])
def test_one_wrong_timestamp_moves_no_other_frame(wrong: int):
    pts = steady(60)
    pts[20] = wrong
    assert times(pts) == steady(60)


def test_disordered_timestamps_are_replaced_by_decoding_times():
    """H.264 with B-frames in AVI, as FFmpeg gives it: pts in order of decoding, dts in order of output."""
    wrong = [1, 4, 3, 5, 2, 8, 7, 9, 6, 12, 11, 13, 10, 16, 15, 17, 14]
    stamps = [Stamp(40 * p, 40 * (i + 2), 40) for i, p in enumerate(wrong)]
    ticks = run(stamps, stores_pts=False, first_dts=0)
    assert [tick.pts for tick in ticks] == steady(len(wrong))
    assert [tick.pts for tick in run(stamps)] == steady(len(wrong), 40)  # any other container


def test_disorder_that_begins_later_is_seen():
    wrong = [*range(1, 21), 24, 23, 25, 22, 28, 27, 29, 26, 32, 31, 33, 30, 36, 35, 37, 34]
    stamps = [Stamp(40 * p, 40 * (i + 2), 40) for i, p in enumerate(wrong)]
    assert [tick.pts for tick in run(stamps, stores_pts=False, first_dts=0)] == steady(len(wrong), 40)
    ticks = [tick.pts for tick in run(stamps)]
    assert ticks[:20] == steady(20, 40)
    assert ticks[-1] == pytest.approx(40 * len(wrong), abs=4 * 40)


def test_dropped_frames_of_an_avi_leave_their_time():
    stamps = [Stamp(None, 40 * i, 40) for i in (0, 1, 2, 5, 6, 7, 8, 9)]
    assert [t.pts for t in run(stamps, stores_pts=False, first_dts=0)] == [40 * i for i in (0, 1, 2, 5, 6, 7, 8, 9)]


@pytest.mark.parametrize("second", [0, 1400, -HOUR, 5 * HOUR, 1 << 33])
def test_a_joined_recording_goes_on_from_the_last_frame(second: int):
    ticks = run([Stamp(p, p, 40) for p in [*steady(20, 1000), *steady(20, second), *steady(20, second - 2000)]])
    assert [tick.pts for tick in ticks] == steady(60, 1000)
    assert [i for i, tick in enumerate(ticks) if tick.joint] == [20, 40]
    assert [tick.rebuilt for tick in ticks] == [False] * 20 + [True] * 40


@st.composite
def streams(draw: st.DrawFn) -> list[Stamp]:
    """A valid stream, then harmed: missing, repeated, swapped and wild timestamps, and joints."""
    frames = draw(st.integers(1, 60))
    steps = draw(st.lists(st.integers(1, 400), min_size=frames, max_size=frames))
    pts: list[int | None] = []
    time = draw(st.integers(-(1 << 61), 1 << 61))
    for step in steps:
        time += step
        pts.append(time)
    for _ in range(draw(st.integers(0, 8))):
        place = draw(st.integers(0, frames - 1))
        pts[place] = draw(st.sampled_from([None, pts[place - 1], pts[0], 0, -(1 << 63), (1 << 63) - 1, 10**9]))
    dts = [p if draw(st.booleans()) else None for p in pts]
    durations = draw(st.lists(st.sampled_from([0, 1, 40, 10**12]), min_size=frames, max_size=frames))
    return [Stamp(p, d, n) for p, d, n in zip(pts, dts, durations, strict=True)]


@settings(deadline=None, max_examples=300)
@given(streams(), st.booleans(), st.integers(2, MAX_LOOK_AHEAD))
def test_no_frame_is_lost_and_time_rises(stamps: list[Stamp], stores_pts: bool, look_ahead: int):
    options = {"stores_pts": stores_pts, "first_dts": stamps[0].dts, "look_ahead": look_ahead}
    ticks = run(stamps, **options)
    assert len(ticks) == len(stamps)
    assert all(after.pts > before.pts for before, after in itertools.pairwise(ticks))
    assert all(tick.rebuilt == (tick.pts != stamp.pts) for tick, stamp in zip(ticks, stamps, strict=True))
    assert ticks == run(stamps, **options)


@settings(deadline=None)
@given(st.lists(st.integers(1, 2 * HOUR // 2), min_size=1, max_size=80), st.integers(-(1 << 61), 1 << 61))
def test_any_rising_time_line_within_an_hours_steps_is_the_containers(steps: list[int], start: int):
    pts = [start + sum(steps[:i]) for i in range(len(steps))]
    assert [tick.pts for tick in run([Stamp(p, None, 0) for p in pts])] == pts


@settings(deadline=None)
@given(streams(), st.integers(1, 59))
def test_ticks_do_not_depend_on_what_comes_much_later(stamps: list[Stamp], cut: int):
    """So that a scan and an extraction that stops early agree."""
    whole, start = run(stamps), run(stamps[:cut])
    settled = max(0, min(cut, len(stamps)) - MAX_LOOK_AHEAD)
    assert start[:settled] == whole[:settled]
