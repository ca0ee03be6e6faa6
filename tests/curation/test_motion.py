"""Motion against closed form: a texture moved by a known number of pixels per frame scores that speed."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from curation.motion import MotionMeter
from curation.scan import scan
from curation.sources import list_sources
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
