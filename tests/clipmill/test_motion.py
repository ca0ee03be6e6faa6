"""Motion against closed form: a texture moved by a known number of pixels per frame scores that speed."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from clipmill.motion import MotionConfig, MotionMeter, _flow, _normal_flow
from curation.inputs.sources import list_sources
from curation.scan.one_pass import scan
from tests.media import panning, texture, write_video


def motion_of(path: Path) -> float:
    (source,) = list_sources([str(path)])
    (clip,) = scan(source).clips
    assert clip["motion_error"] is None
    return clip["motion"]


@pytest.mark.slow
@pytest.mark.parametrize("height", [360, 1080])
@pytest.mark.parametrize("fps", [12, 24, 60])
@pytest.mark.parametrize("percent_per_s", [2.0, 40.0])
def test_a_panned_texture_scores_its_speed(tmp_path: Path, height: int, fps: int, percent_per_s: float):
    pixels_per_frame = percent_per_s / 100 * height / fps
    frames = panning(height=height, pixels_per_frame=pixels_per_frame, frames=round(2.1 * fps))
    path = write_video(tmp_path / "pan.mp4", frames, fps=fps, options={"crf": "20", "preset": "ultrafast"})
    assert motion_of(path) == pytest.approx(percent_per_s, rel=0.1)


def test_a_still_scores_next_to_nothing(tmp_path: Path):
    frames = panning(height=360, pixels_per_frame=0, frames=60)
    rng = np.random.default_rng(1)
    noisy = [np.clip(f + rng.normal(0, 2, f.shape), 0, 255).astype(np.uint8) for f in frames]
    assert motion_of(write_video(tmp_path / "still.mp4", frames)) < 0.05
    assert motion_of(write_video(tmp_path / "noisy.mp4", noisy)) < 0.2


def test_non_square_pixels_count_as_displayed(tmp_path: Path):
    """A pan of the displayed picture scores the same when the frames are stored squeezed."""
    frames = panning(height=360, pixels_per_frame=6, frames=50, angle=0.0)
    squeezed = [frame[:, ::2] for frame in frames]
    full = motion_of(write_video(tmp_path / "full.mp4", frames))
    path = write_video(tmp_path / "squeezed.mp4", squeezed, sample_aspect_ratio=Fraction(2))
    assert motion_of(path) == pytest.approx(full, rel=0.1)


def test_a_clip_without_two_measured_frames_has_no_motion_and_says_why():
    meter = MotionMeter()
    luma = np.zeros((64, 114), np.uint8)
    for i in range(30):
        if meter.wants(i / 30):
            meter.push(i, i / 30, luma)
    assert meter.between(16, 18) == (None, "no two measured frames lie within the clip")
    assert meter.between(0, 30) == (0.0, None)


def test_frames_that_are_not_wanted_are_few():
    meter = MotionMeter()
    wanted = 0
    for i in range(600):
        if meter.wants(i / 60):
            wanted += 1
            meter.push(i, i / 60, np.zeros((64, 114), np.uint8))
    assert wanted <= 2 * 2 * 10 + 2


def test_motion_is_not_measured_across_a_cut(tmp_path: Path):
    """Opposite slow pans of unrelated textures that meet on a sampling instant: half a second is twelve frames."""
    there = panning(height=360, pixels_per_frame=0.5, frames=60, angle=0.0)
    back = panning(height=360, pixels_per_frame=0.5, frames=60, angle=0.0, seed=9)[::-1]
    (source,) = list_sources([str(write_video(tmp_path / "two.mp4", there + back, fps=24))])
    clips = scan(source).clips
    assert [clip["start_frame"] for clip in clips] == [0, 60]
    for clip in clips:
        assert clip["motion"] == pytest.approx(12 / 360 * 100, rel=0.1)


def test_a_speed_counts_if_both_of_its_frames_lie_within_the_clip():
    """Still for a second, then another picture that is still: a speed beyond the cut at frame 24 would be large."""
    meter = MotionMeter()
    for i in range(48):
        if meter.wants(i / 24):
            meter.push(i, i / 24, texture(64, 114, seed=i // 24).astype(np.uint8))
    assert meter.between(0, 24) == (0.0, None)
    assert meter.between(24, 48) == (0.0, None)
    across, _ = meter.between(0, 25)
    assert across is not None
    assert across > 5


def test_the_short_baseline_of_a_short_clip_does_not_cross_a_cut_either():
    """Samples at frames 0 and 12, their short baselines to frames 2 and 14; the picture changes at frame 14."""
    meter = MotionMeter()
    for i in range(20):
        if meter.wants(i / 24):
            meter.push(i, i / 24, texture(64, 114, seed=i // 14).astype(np.uint8))
    assert meter.between(12, 14) == (None, "no two measured frames lie within the clip")
    across, _ = meter.between(12, 15)
    assert across is not None
    assert across > 5


@pytest.mark.parametrize("end", [48, 3])
@pytest.mark.parametrize("region_px", [(300, 64), (120, 200)])
def test_a_speed_over_a_larger_region_is_spread_over_its_area(end: int, region_px: tuple[int, int]):
    """The same moved pixels over the area of the larger region, in percent of its shorter side; on both baselines."""
    meter, luma_HW = MotionMeter(), texture(64, 120, seed=3).astype(np.uint8)
    for i in range(48):
        if meter.wants(i / 24):
            meter.push(i, i / 24, np.roll(luma_HW, i // 2, axis=1), (100, 50))
    measured, _ = meter.between(0, end)
    assert measured is not None
    assert measured > 0
    width, height = region_px
    expected = measured * (100 * 50 * 50) / (width * height * min(region_px))
    assert meter.between(0, end, region_px) == (pytest.approx(expected), None)
    assert meter.between(0, end, (100, 50)) == (measured, None)


def test_the_region_is_the_frame_unless_another_is_given():
    meter, luma_HW = MotionMeter(), texture(64, 120, seed=3).astype(np.uint8)
    for i in range(24):
        if meter.wants(i / 24):
            meter.push(i, i / 24, np.roll(luma_HW, i, axis=1))
    measured, _ = meter.between(0, 24)
    assert measured is not None
    assert meter.between(0, 24, (120, 64)) == (measured, None)
    assert meter.between(0, 24, (240, 64)) == (pytest.approx(measured / 2), None)


def test_speeds_between_frames_or_regions_of_other_sizes_do_not_count():
    luma_HW = texture(64, 120, seed=3).astype(np.uint8)
    moved_HW, cut_HW = np.roll(luma_HW, 2, axis=1), luma_HW[:, :100].copy()
    for later_HW, region_px, counts in (
        (moved_HW, (90, 50), True),
        (moved_HW, (90, 48), False),
        (cut_HW, (90, 50), False),
    ):
        meter = MotionMeter()
        meter.push(0, 0.0, luma_HW, (90, 50))
        meter.push(2, 0.1, later_HW, region_px)
        assert (meter.between(0, 3)[0] is not None) == counts


RAMP = np.tile(np.arange(0, 128, 2, dtype=np.uint8), (64, 1))
"""64 x 64, rising by 2 from left to right: its gradient is 63 * 64 * 2, and n more is a shift by n / 2 pixels."""


def measured(config: MotionConfig, *shown: tuple[float, np.ndarray], pts: int = 1000) -> MotionMeter:
    meter = MotionMeter(config)
    for time_s, luma in shown:
        meter.push(round(time_s * pts), time_s, luma)
    return meter


def test_frames_are_wanted_at_samples_and_once_at_three_quarters_of_the_short_baseline():
    meter = MotionMeter(MotionConfig(samples_per_s=0.5, short_baseline_s=0.25))
    assert meter.wants(-7.0)
    meter.push(0, 1.0, RAMP)
    assert not meter.wants(1.1874)
    assert meter.wants(1.1875)
    meter.push(1, 1.1875, RAMP)
    assert not meter.wants(1.5)
    due_s = 1.0 + 1 / 0.5 - 1e-6
    assert not meter.wants(np.nextafter(due_s, 0))
    assert meter.wants(due_s)
    meter.push(2, due_s, RAMP)
    assert not meter.wants(due_s + 0.18)
    assert meter.wants(due_s + 0.19)


def test_the_estimate_is_change_over_gradient():
    assert _normal_flow(RAMP, RAMP + 3) == pytest.approx(3 * 64 * 64 / (2 * 63 * 64))
    assert _normal_flow(np.ascontiguousarray(RAMP.T), RAMP.T + 3) == pytest.approx(3 * 64 * 64 / (2 * 63 * 64))
    both = RAMP // 2 + RAMP.T
    assert _normal_flow(both, both + 3) == pytest.approx(3 * 64 * 64 / (3 * 63 * 64))
    flat = np.full((16, 16), 7, np.uint8)
    assert _normal_flow(flat, flat + 1) == 256.0


def test_speed_is_percent_of_the_shorter_side_per_second():
    """By estimate: 1.5 px * 64 / 63 in half a second of a picture 64 high, and the same over 64 of 80 columns."""
    config = MotionConfig(still_percent_per_s=100)
    shift_px = 1.5 * 64 / 63
    for extra in (0, 16):
        tall = np.vstack([RAMP, RAMP[:extra]])
        meter = measured(config, (1.0, tall), (1.5, tall + 3))
        assert meter.between(0, 2000) == (pytest.approx(shift_px / 64 * 100 / 0.5), None)
    assert measured(config, (1.0, RAMP), (1.5, RAMP + 3)).between(1000, 1500)[0] is None
    assert measured(config, (1.0, RAMP), (1.5, RAMP + 3)).between(1001, 1501)[0] is None
    assert measured(config, (1.0, RAMP), (1.5, RAMP + 3)).between(1000, 1501)[0] is not None


def moving(pixels: int) -> np.ndarray:
    return texture(96, 160)[16:80, 16 + pixels : 130 + pixels].astype(np.uint8)


def test_flow_is_the_mean_shift_in_pixels():
    shift_px = _flow(moving(0), moving(2))
    assert shift_px == pytest.approx(2, rel=0.06)
    # Scores can be compared only while these hold. Each of them changes the fourth digit.
    flow_HW2 = np.zeros((64, 114, 2), np.float32)
    cv2.calcOpticalFlowFarneback(moving(0), moving(2), flow_HW2, 0.5, 4, 15, 3, 5, 1.2, 0)
    assert shift_px == pytest.approx(float(np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]).mean()), rel=1e-6)


def test_a_speed_up_to_the_bound_is_the_estimate_and_beyond_it_the_flow():
    percent_per_px = 100 / 64 / 0.5
    estimate = percent_per_px * _normal_flow(moving(0), moving(2))
    shown = (1.0, moving(0)), (1.5, moving(2))
    at = measured(MotionConfig(slow_percent_per_s=1e3, still_percent_per_s=estimate), *shown)
    assert at.between(0, 2000) == (estimate, None)
    beyond = MotionConfig(slow_percent_per_s=1e3, still_percent_per_s=float(np.nextafter(estimate, 0)))
    below = measured(beyond, *shown)
    assert below.between(0, 2000) == (percent_per_px * _flow(moving(0), moving(2)), None)


def test_fast_is_measured_over_the_short_baseline_and_slow_over_the_long():
    """2 px in an eighth of a second, 3 px in half a second."""
    short = 100 / 64 / 0.125 * _flow(moving(0), moving(2))
    long = 100 / 64 / 0.5 * _flow(moving(0), moving(3))
    shown = (1.0, moving(0)), (1.125, moving(2)), (1.5, moving(3))
    settings = {"surely_slow_percent_per_s": 0.0, "still_percent_per_s": 0.0}
    assert measured(MotionConfig(slow_percent_per_s=short, **settings), *shown).between(0, 2000) == (short, None)
    slow = MotionConfig(slow_percent_per_s=float(np.nextafter(short, 100)), **settings)
    assert measured(slow, *shown).between(0, 2000) == (long, None)
    assert measured(slow, *shown).between(1000, 1126) == (short, None)
    surely = 100 / 64 / 0.125 * _normal_flow(moving(0), moving(2))
    estimated = MotionConfig(slow_percent_per_s=0.0, surely_slow_percent_per_s=surely, still_percent_per_s=0.0)
    assert measured(estimated, *shown).between(0, 2000) == (surely, None)


def test_a_clip_has_the_mean_of_its_intervals_without_those_that_cannot_be_measured():
    config = MotionConfig(surely_slow_percent_per_s=100, slow_percent_per_s=1e3, still_percent_per_s=100)
    shown = [(1.0, RAMP), (1.5, RAMP + 3), (2.0, RAMP + 4), (2.5, RAMP[:32]), (2.5, RAMP[:32])]
    meter = measured(config, *shown)
    px_per_level = 0.5 * 64 / 63 / 64 * 100 / 0.5
    assert meter.between(0, 9000) == (pytest.approx((3 + 1) / 2 * px_per_level), None)
    assert meter.between(1500, 9000) == (pytest.approx(1 * px_per_level), None)
    assert meter.between(2000, 9000) == (None, "no two measured frames lie within the clip")
    still_the_same_time = measured(config, (1.0, RAMP), (1.0, RAMP))
    assert still_the_same_time.between(0, 9000)[0] is None
    meter = measured(config, (1.0, RAMP), (1.0625, RAMP + 1), (1.5, RAMP + 2), (1.5625, RAMP + 5), (2.0, RAMP + 7))
    assert meter.between(1500, 1600) == (pytest.approx(3 * px_per_level * 8), None)
