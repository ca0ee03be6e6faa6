"""Cut detection on drawn pictures whose transitions are known, and on real footage with labels."""

import json
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation.shots.cuts import CutConfig, CutDetector, Transition
from curation.video.decode import Video
from curation.video.resize import FrameResizer

WIDTH, HEIGHT = 160, 90
Picture = NDArray[np.uint8]


def texture(seed: int, width: int = 900, height: int = 130) -> Picture:
    """Soft random colours with fine detail on top, larger than a frame so that a camera can move over it."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for cell_px, strength in ((40, 45), (12, 30), (4, 22)):
        noise = rng.normal(0, strength, (height // cell_px + 2, width // cell_px + 2, 3)).astype(np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture + rng.uniform(90, 150, 3), 16, 235).astype(np.uint8)


def shot(seed: int, frames: int, *, speed_px: float = 0.5) -> list[Picture]:
    """A camera that pans over a texture by `speed_px` per frame."""
    whole = texture(seed)
    views = []
    for i in range(frames):
        move = np.array([[1, 0, -speed_px * i], [0, 1, 0]], np.float32)
        views.append(np.ascontiguousarray(cv2.warpAffine(whole, move, (WIDTH, HEIGHT))))
    return views


def blend(old: Picture, new: Picture, share: float) -> Picture:
    return cv2.addWeighted(old, 1 - share, new, share, 0)  # type: ignore[return-value]


def flat(level: int) -> Picture:
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def dissolve(old: Sequence[Picture], new: Sequence[Picture]) -> list[Picture]:
    """All mixed: no frame is purely one or the other."""
    return [blend(a, b, (i + 1) / (len(old) + 1)) for i, (a, b) in enumerate(zip(old, new, strict=True))]


def fade(pictures: Sequence[Picture], level: int) -> list[Picture]:
    """From full strength to blank; reversed in time by reversing input and output."""
    return [blend(p, flat(level), (i + 1) / len(pictures)) for i, p in enumerate(pictures)]


def luma(picture: Picture) -> Picture:
    return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)  # type: ignore[return-value]


def found(pictures: Iterable[Picture], fps: float = 25.0, times_s: Sequence[float] | None = None) -> list[Transition]:
    detector = CutDetector()
    for i, picture in enumerate(pictures):
        time_s = times_s[i] if times_s else i / fps
        detector.push(i, round(time_s * 90_000), time_s, luma(picture))
    return detector.finish()


def spans(transitions: Iterable[Transition]) -> list[tuple[str, int, int]]:
    return [(t.kind, t.start_frame, t.end_frame) for t in transitions]


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


def test_wipe_is_a_gradual_change() -> None:
    old, new = shot(1, 75, speed_px=0.0), shot(2, 75, speed_px=0.0)
    pictures = old[:50]
    for i in range(25):
        edge = (i + 1) * WIDTH // 26
        pictures.append(np.hstack([new[i][:, :edge], old[50 + i][:, edge:]]))
    (transition,) = found(pictures + new[25:])
    assert transition.kind == "dissolve"
    assert transition.start_frame <= 51
    assert transition.end_frame >= 74


def wipe(old: Sequence[Picture], new: Sequence[Picture], direction: str) -> list[Picture]:
    """An edge that moves to the right, left, down or up and uncovers the new shot; all mixed, none pure."""
    pictures = []
    axis, back = (0 if direction in ("down", "up") else 1), direction in ("left", "up")
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        turned, uncovered = (np.flip(p, axis) if back else p for p in (a, b))
        edge = round((i + 1) * a.shape[axis] / (len(old) + 1))
        parts = np.split(uncovered, [edge], axis)[0], np.split(turned, [edge], axis)[1]
        whole = np.concatenate(parts, axis)
        pictures.append(np.ascontiguousarray(np.flip(whole, axis) if back else whole))
    return pictures


@pytest.mark.parametrize("direction", ["right", "left", "down", "up"])
@pytest.mark.parametrize(("fps", "frames"), [(12, 5), (12, 24), (24, 12), (24, 48), (60, 24), (60, 90)])
@pytest.mark.parametrize("speed_px_per_s", [0, 30])
def test_wipe_between_moving_shots_leaves_no_mixed_frame_outside(
    direction: str, fps: int, frames: int, speed_px_per_s: float
) -> None:
    before = 2 * fps
    old, new = (shot(seed, before + frames, speed_px=speed_px_per_s / fps) for seed in (1, 2))
    pictures = old[:before] + wipe(old[before:], new[:frames], direction) + new[frames:]
    (transition,) = found(pictures, fps)
    assert transition.kind == "dissolve"
    slack = 3 + frames // 12
    assert before - slack <= transition.start_frame <= before
    assert before + frames <= transition.end_frame <= before + frames + slack


def test_wipe_with_a_soft_edge_and_bars_above_and_below() -> None:
    old, new = shot(1, 74, speed_px=1.5), shot(2, 74, speed_px=1.0)
    pictures = old[:50]
    for i in range(24):
        share = np.clip((i + 1) / 25 * 1.1 - np.linspace(0, 1, WIDTH) * 1.0, 0, 0.1) * 10
        pictures.append((old[50 + i] * (1 - share[:, None]) + new[i] * share[:, None]).astype(np.uint8))
    pictures += new[24:]
    for picture in pictures:
        picture[:12] = picture[-12:] = 16
    (transition,) = found(pictures)
    assert transition.kind == "dissolve"
    assert 46 <= transition.start_frame <= 51
    assert 73 <= transition.end_frame <= 78


@pytest.mark.parametrize("fps", [12, 24, 60])
@pytest.mark.parametrize("speed_px_per_s", [100, 180])
@pytest.mark.parametrize("turned", [False, True])
def test_an_edge_that_a_fast_pan_drags_along_is_no_wipe(fps: int, speed_px_per_s: float, turned: bool) -> None:
    whole = np.hstack([texture(1, 400, 160), texture(2, 400, 160), texture(3, 400, 160)])
    pictures = []
    for i in range(5 * fps):
        place = round(speed_px_per_s * i / fps)
        view = whole[:160, place : place + 160] if turned else whole[:HEIGHT, place : place + WIDTH]
        pictures.append(cv2.resize(cv2.transpose(view), (WIDTH, HEIGHT)) if turned else view)
    assert found(pictures, fps) == []


@pytest.mark.parametrize("fps", [12, 24, 60])
@pytest.mark.parametrize("size_px", [80, 200, 320])
def test_a_big_object_that_crosses_the_frame_is_no_wipe(fps: int, size_px: int) -> None:
    pictures = shot(1, 5 * fps, speed_px=6 / fps)
    thing = texture(2, size_px, HEIGHT)[:HEIGHT]
    for i, picture in enumerate(pictures):
        right = round(160 * (i / fps - 1))
        left, stop = max(0, right - size_px), min(right, WIDTH)
        if left < stop:
            picture[:, left:stop] = thing[:, left - right + size_px : stop - right + size_px]
    assert found(pictures, fps) == []


@pytest.mark.parametrize("fps", [12, 24, 60])
@pytest.mark.parametrize("out", [False, True])
def test_a_zoom_is_no_wipe(fps: int, out: bool) -> None:
    whole, frames = texture(1, 640, 360), 3 * fps
    pictures = [whole for _ in range(frames)]
    for i in range(frames):
        scale = 1 - 0.5 * np.clip((i / fps - 0.8) / 1.2, 0, 1)
        width, height = round(640 * scale), round(360 * scale)
        left, top = (640 - width) // 2, (360 - height) // 2
        view = whole[top : top + height, left : left + width]
        pictures[i] = cv2.resize(view, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    assert found(pictures[::-1] if out else pictures, fps) == []


@pytest.mark.parametrize(("level", "kind"), [(16, "black"), (235, "white")])
@pytest.mark.parametrize("letterbox", [False, True])
def test_fade_through_a_blank_picture(level: int, kind: str, letterbox: bool) -> None:
    old, new = shot(1, 60), shot(2, 60)
    pictures = old[:40] + fade(old[40:], level) + [flat(level)] * 3 + fade(new[:20][::-1], level)[::-1] + new[20:]
    if letterbox:
        for picture in pictures:
            picture[:12] = picture[-12:] = 16
    (transition,) = found(pictures)
    assert transition.kind == kind
    assert 36 <= transition.start_frame <= 41
    assert 82 <= transition.end_frame <= 87


def test_black_may_carry_a_watermark_and_may_begin_with_a_cut() -> None:
    pictures = shot(1, 50) + [flat(16) for _ in range(10)] + shot(2, 50)
    for picture in pictures:
        cv2.putText(picture, "(c) me", (110, 84), cv2.FONT_HERSHEY_SIMPLEX, 0.3, (90, 90, 90), 1)
    assert spans(found(pictures)) == [("black", 50, 60)]


def test_fades_that_open_and_end_a_video() -> None:
    view = shot(1, 100)
    pictures = [flat(16)] * 5 + fade(view[:20][::-1], 16)[::-1] + view[20:80] + fade(view[80:], 16) + [flat(16)] * 5
    opening, ending = found(pictures)
    assert (opening.kind, opening.start_frame, opening.start_pts) == ("black", 0, 0)
    assert 24 <= opening.end_frame <= 29
    assert (ending.kind, ending.end_frame) == ("black", len(pictures))
    assert ending.end_pts == len(pictures) * 3600  # the time at which the next frame would have been
    assert 81 <= ending.start_frame <= 86


def still(picture: Picture, frames: int) -> list[Picture]:
    """A still picture with a little noise, as a decoder gives it."""
    rng = np.random.default_rng(5)
    return [cv2.add(picture, rng.integers(0, 2, picture.shape, np.uint8)) for _ in range(frames)]  # type: ignore[misc]


def graphic(name: str) -> Picture:
    """A picture that is dark, or has few edges, and yet shows something."""
    picture = flat({"slide": 235, "quarter on grey": 90}.get(name, 16))
    if name.startswith("quarter"):
        picture[: HEIGHT // 2, : WIDTH // 2] = 235
    elif name == "half":
        picture[:, : WIDTH // 2] = 235
    elif name == "logo":
        cv2.circle(picture, (80, 45), 8, (30, 200, 240), -1)
    elif name == "slide":
        cv2.line(picture, (40, 45), (120, 45), (60, 60, 60), 2)
    return picture


GRAPHICS = ["quarter on black", "quarter on grey", "half", "logo", "slide"]


@pytest.mark.parametrize("name", GRAPHICS)
def test_a_still_graphic_is_no_fade(name: str) -> None:
    assert found([graphic(name)] * 100) == []


@pytest.mark.parametrize("name", GRAPHICS)
@pytest.mark.parametrize("seconds", [2.5, 4.0, 9.0])
def test_a_still_graphic_between_shots_is_a_shot(name: str, seconds: float) -> None:
    frames = round(25 * seconds)
    pictures = shot(1, 60) + [graphic(name)] * frames + shot(2, 60)
    assert spans(found(pictures)) == [("hard", 60, 60), ("hard", 60 + frames, 60 + frames)]


@pytest.mark.parametrize("fps", [10, 25, 60])
def test_a_night_scene_is_no_fade(fps: int) -> None:
    def night(i: int) -> Picture:
        picture = flat(18)
        for car in range(4):
            place = int(40 * car + 50 * i / fps) % WIDTH
            cv2.circle(picture, (place, 50 + 8 * car), 1, (200, 230, 240), -1)
        return picture

    assert found([night(i) for i in range(6 * fps)], fps) == []


def test_a_fade_that_leads_into_a_title_ends_where_the_title_stands() -> None:
    pictures = shot(1, 60)[:40] + fade(shot(1, 60)[40:], 16) + [flat(16)] * 5
    title = graphic("logo")
    pictures += fade([title] * 15, 16)[::-1] + still(title, 150)
    (transition,) = found(pictures)
    assert transition.kind == "black"
    assert 36 <= transition.start_frame <= 41
    assert 70 <= transition.end_frame <= 90


@pytest.mark.parametrize(("level", "kind"), [(16, "black"), (235, "white")])
@pytest.mark.parametrize("frames", [50, 250])
def test_long_blank_footage_is_left_out(level: int, kind: str, frames: int) -> None:
    assert spans(found(still(flat(level), frames))) == [(kind, 0, frames)]
    assert spans(found(shot(1, 60) + still(flat(level), frames))) == [(kind, 60, 60 + frames)]
    (faded,) = found(shot(1, 60) + fade(shot(1, 80)[60:], level) + still(flat(level), frames))
    assert (faded.kind, faded.end_frame) == (kind, 80 + frames)
    assert 56 <= faded.start_frame <= 61


@pytest.mark.parametrize("level", [16, 90, 235])
def test_a_blank_moment_that_nothing_leads_into_is_no_fade(level: int) -> None:
    assert found([flat(level)] * 20) == []


def test_a_plain_field_that_turns_black_and_comes_back_is_a_fade() -> None:
    levels = 125 - 109 * np.cos(np.linspace(0, 2 * np.pi, 101))
    (opening, ending) = found([flat(round(level)) for level in levels])
    assert (opening.kind, opening.start_frame, ending.kind, ending.end_frame) == ("black", 0, "black", 101)


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
