"""Another frame rate: the nearest frame at each moment, as long as before."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.errors import SourceError
from curation.shards.resample import Resampler, clip_duration, needs_resampling, resampled_frames
from curation.video.timed import Frame


def clip_of(pts: list[int], end: int, base: Fraction = Fraction(1, 1000)) -> dict[str, Any]:
    return {
        "time_base_num": base.numerator,
        "time_base_den": base.denominator,
        "start_pts": pts[0],
        "end_pts": end,
        "frames": len(pts),
    }


def resampled(pts: list[int], end: int, fps: Fraction) -> list[tuple[int, int]]:
    """pts out, index of the frame in."""
    resampler = Resampler(clip_of(pts, end), fps)
    frames = [Frame(index=i, pts=at, av_frame=None, info=None) for i, at in enumerate(pts)]  # type: ignore[arg-type]
    out = [each for frame in frames for each in resampler.push(frame)]
    return [(frame.pts, frame.index) for frame in (*out, *resampler.end())]


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=30),
    st.integers(-1000, 1000),
    st.sampled_from([Fraction(8), Fraction(16), Fraction(24000, 1001), Fraction(60)]),
)
def test_each_moment_shows_the_nearest_frame(intervals: list[int], start: int, fps: Fraction) -> None:
    pts = [start + sum(intervals[:i]) for i in range(len(intervals))]
    end = start + sum(intervals)
    out = resampled(pts, end, fps)
    assert [at for at, _ in out] == list(range(resampled_frames(Fraction(end - start, 1000), fps)))
    for at, index in out:
        distances = [abs(Fraction(each - start, 1000) - at / fps) for each in pts]
        assert distances[index] == min(distances)
    duration = clip_duration(clip_of(pts, end))
    assert abs(len(out) / fps - duration) <= 1 / fps


def test_the_same_rate_takes_every_frame_once() -> None:
    assert [index for _, index in resampled(list(range(0, 1000, 125)), 1000, Fraction(8))] == list(range(8))


def test_other_frames_than_those_scanned_are_an_error() -> None:
    resampler = Resampler(clip_of([0, 10], 20), Fraction(25))
    with pytest.raises(SourceError, match="no frame with timestamp 0"):
        list(resampler.push(Frame(index=0, pts=5, av_frame=None, info=None)))  # type: ignore[arg-type]
    list(resampler.push(Frame(index=0, pts=0, av_frame=None, info=None)))  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="1 frames decoded, expected 2"):
        list(resampler.end())


@pytest.mark.parametrize(
    ("fps", "variable", "asked", "needed"),
    [
        (24.0, False, Fraction(24), False),
        (23.976, False, Fraction(24), False),
        (25.0, False, Fraction(24), True),
        (24.0, True, Fraction(24), True),
        (None, False, Fraction(24), True),
        (25.0, True, None, False),
    ],
)
def test_what_needs_another_rate(fps: float | None, variable: bool, asked: Fraction | None, needed: bool) -> None:
    assert needs_resampling({"fps": fps, "variable_fps": variable}, asked) is needed


@pytest.mark.parametrize(
    ("frames_per_s", "frames", "bucket", "needed"),
    [
        (Fraction(16), 33, 33, False),
        (Fraction(1602, 100), 33, 33, True),
        (Fraction(1602, 100), 34, 33, False),
        (Fraction(1598, 100), 33, 33, False),
        (Fraction(1602, 100), 33, None, False),
    ],
)
def test_a_clip_fills_its_bucket_at_the_rate(
    frames_per_s: Fraction, frames: int, bucket: int | None, needed: bool
) -> None:
    """diffusion-pipe resamples a file of n frames to n * 16 / rate frames, rounded down, and fails below the bucket."""
    clip = clip_of(list(range(frames)), frames, 1 / frames_per_s) | {"fps": float(frames_per_s), "variable_fps": False}
    if bucket is not None:
        clip["bucket"] = {"frames": bucket}
        assert needed is (int(frames * 16 / frames_per_s) < bucket)
    assert needs_resampling(clip, Fraction(16)) is needed
