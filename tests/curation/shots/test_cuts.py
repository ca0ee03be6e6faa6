"""Cut detection on drawn pictures whose transitions are known, and on real footage with labels."""

import json
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation.shots.cuts import CutConfig, CutDetector
from curation.video.decode import Video
from curation.video.resize import FrameResizer
from tests.curation.shots.drawn import (
    blend,
    dissolve,
    flat,
    found,
    luma,
    shot,
    spans,
    texture,
)


@pytest.mark.parametrize("fps", [5, 12, 24, 60, 120])
@pytest.mark.parametrize("speed_px", [0.0, 1.0])
def test_hard_cut_is_exact_at_any_rate(fps: int, speed_px: float) -> None:
    pictures = shot(1, 47, speed_px=speed_px) + shot(2, 41, speed_px=speed_px) + shot(3, 50, speed_px=speed_px)
    assert spans(found(pictures, fps)) == [("hard", 47, 47), ("hard", 88, 88)]


def test_pts_and_time_are_those_of_the_frames_when_the_rate_varies() -> None:
    rng = np.random.default_rng(0)
    times_s = np.cumsum(rng.uniform(0.01, 0.12, 100)).tolist()
    (cut,) = found(shot(1, 60) + shot(2, 40), times_s=times_s)
    assert (cut.kind, cut.start_frame, cut.end_frame) == ("hard", 60, 60)
    assert cut.start_pts == cut.end_pts == round(times_s[60] * 90_000)


def test_hard_cut_is_exact_where_frames_are_shown_twice_or_thrice() -> None:
    pictures = [p for i, p in enumerate(shot(1, 30, speed_px=2) + shot(2, 30, speed_px=2)) for _ in range(2 + i % 2)]
    assert spans(found(pictures, 60)) == [("hard", 75, 75)]


@pytest.mark.parametrize("place", [1, 2, 57, 58, 59])
def test_hard_cut_next_to_the_ends(place: int) -> None:
    pictures = shot(1, place) + shot(2, 60 - place)
    assert spans(found(pictures)) == [("hard", place, place)]


def test_cut_in_black_and_white_footage() -> None:
    pictures = [cv2.merge([p[..., 1] // 2 + 60] * 3) for p in shot(1, 40) + shot(2, 40)]
    assert spans(found(pictures)) == [("hard", 40, 40)]


def test_change_of_slide_is_a_cut() -> None:
    slides = []
    for lines in (["Why", "one", "two and three"], ["Data at scale", "something else", "entirely"]):
        slide = flat(235)
        for i, line in enumerate(lines):
            cv2.putText(slide, line, (10, 25 + 25 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (20, 20, 20), 2)
        slides += [slide] * 60
    assert spans(found(slides)) == [("hard", 60, 60)]


@pytest.mark.parametrize("fps", [6, 25, 60])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("level", [0, 255])
def test_flash_or_dropped_picture_is_no_cut(fps: int, frames: int, level: int) -> None:
    pictures = shot(1, 80)
    for i in range(40, 40 + frames):
        pictures[i] = blend(pictures[i], flat(level), 0.9)
    assert found(pictures, fps) == []


@pytest.mark.parametrize("speed_px", [3.0, 6.0])
def test_fast_pan_is_no_cut(speed_px: float) -> None:
    assert found(shot(1, 100, speed_px=speed_px)) == []


def test_light_that_changes_is_no_cut() -> None:
    light = 0.75 + 0.25 * np.cos(np.linspace(0, 12, 120))
    pictures = [np.clip(p * k, 0, 255).astype(np.uint8) for p, k in zip(shot(1, 120), light, strict=True)]
    assert found(pictures) == []


def test_inset_and_caption_are_no_cut() -> None:
    pictures = shot(1, 120)
    inset = texture(9)
    for i, picture in enumerate(pictures):
        if i >= 30:
            cv2.putText(picture, "A CAPTION", (10, 80), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 255, 255), 2)
        if 60 <= i < 90:
            picture[5:50, 80:155] = inset[:45, :75]
    assert found(pictures) == []


@pytest.mark.parametrize(("fps", "frames"), [(12, 8), (25, 12), (25, 36), (30, 40), (60, 50)])
@pytest.mark.parametrize("speed_px", [0.0, 0.5])
def test_dissolve_leaves_no_mixed_frame_outside(fps: int, frames: int, speed_px: float) -> None:
    before, after = 2 * fps, 2 * fps
    old, new = shot(1, before + frames, speed_px=speed_px), shot(2, frames + after, speed_px=speed_px)
    pictures = old[:before] + dissolve(old[before:], new[:frames]) + new[frames:]
    (transition,) = found(pictures, fps)
    assert transition.kind == "dissolve"
    slack = 4 + frames // 4
    assert before - slack <= transition.start_frame <= before
    assert before + frames <= transition.end_frame <= before + frames + slack


def test_nothing_in_nothing_out() -> None:
    assert CutDetector().finish() == []
    assert found(shot(1, 1)) == []


def test_a_new_size_within_a_video_is_taken() -> None:
    larger = [cv2.resize(p, (192, 108)) for p in shot(2, 40)]
    assert spans(found(shot(1, 40) + larger)) == [("hard", 40, 40)]


def test_pictures_are_let_go() -> None:
    detector = CutDetector()
    pictures = [cv2.resize(luma(p), (80, 45)) for p in shot(1, 300, speed_px=0)]
    watched = [weakref.ref(p) for p in pictures]
    for i in range(300):
        detector.push(i, i, i / 25, pictures[i])
        pictures[i] = None
    assert sum(ref() is not None for ref in watched) < 200


def test_unknown_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="hard_ratio"):
        CutConfig(hard_rato=2.0)  # type: ignore[call-arg]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.tuples(st.sampled_from(["hard", "black", "white", "dissolve"]), st.integers(1, 60)), max_size=5),
    fps=st.sampled_from([5.0, 24.0, 60.0]),
    size=st.sampled_from([(160, 90), (4, 160), (16, 16), (2, 2)]),
)
def test_transitions_are_in_order_and_never_overlap(
    cuts: list[tuple[str, int]], fps: float, size: tuple[int, int]
) -> None:
    pictures = shot(0, 20)
    for seed, (kind, frames) in enumerate(cuts, 1):
        new = shot(seed, frames + 5)
        if kind == "dissolve":
            pictures += dissolve([pictures[-1]] * frames, new[:frames])
        elif kind != "hard":
            pictures += [flat(16 if kind == "black" else 235)] * (frames // 4 + 1)
        pictures += new
    transitions = found([cv2.resize(p, size) for p in pictures], fps)
    ends = 0
    for transition in transitions:
        assert ends <= transition.start_frame <= transition.end_frame <= len(pictures)
        assert (transition.start_frame == transition.end_frame) == (transition.kind == "hard")
        assert transition.start_pts <= transition.end_pts
        ends = transition.end_frame


@pytest.mark.parametrize(
    "name", ["psd_aspect_ratio.mp4", "psd_vfr.mp4", "dj_video1.mp4", "mma_struct.mp4", "cc_test_video_30s.mp4"]
)
def test_real_footage_as_labelled(real_videos: Path, name: str) -> None:
    labels = json.loads((real_videos / "cuts.json").read_text())[name]["cuts"]
    detector, resizer = CutDetector(), FrameResizer()
    with (real_videos / name).open("rb") as file, Video(file) as video:
        for frame in video.frames():
            time_s = float(frame.pts * video.info.time_base)
            detector.push(frame.index, frame.pts, time_s, resizer.small_luma(frame.av_frame))
    transitions = detector.finish()
    assert [t.kind for t in transitions] == [kind for kind, _, _ in labels]
    for transition, (kind, start, end) in zip(transitions, labels, strict=True):
        if kind == "hard":
            assert start <= transition.start_frame <= end
        else:
            assert start - 2 <= (transition.start_frame + transition.end_frame) / 2 <= end + 2


def _detect_at(pictures: list[NDArray[np.uint8]], times_s: list[float]) -> list[int]:
    detector = CutDetector()
    for index, (picture, time_s) in enumerate(zip(pictures, times_s, strict=True)):
        detector.push(index, round(time_s * 1000), time_s, luma(picture))
    return [t.start_frame for t in detector.finish() if t.kind == "hard"]


def test_cuts_after_pictures_that_stand_for_long_are_found() -> None:
    """A screen recording: a second of movement, then one picture for nine seconds, then something else."""
    pictures, times_s = [], []
    for i in range(4):
        pictures += shot(i, 30, speed_px=1.0)
        times_s += [10 * i + j / 30 for j in range(30)]
    assert _detect_at(pictures, times_s) == [30, 60, 90]


@pytest.mark.parametrize("seconds", [1.5, 10.0])
def test_every_slide_of_a_slow_slide_show_is_a_cut(seconds: float) -> None:
    slides = [shot(i % 5, 1, speed_px=0.0)[0] for i in range(8)]
    assert _detect_at(slides, [seconds * i for i in range(8)]) == list(range(1, 8))
    back_and_forth = [slides[i % 2] for i in range(8)]
    assert _detect_at(back_and_forth, [seconds * i for i in range(8)]) == list(range(1, 8))
