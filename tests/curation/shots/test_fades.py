"""Fades through black and white, and still graphics that are none."""

import cv2
import numpy as np
import pytest

from tests.curation.shots.drawn import HEIGHT, WIDTH, Picture, fade, flat, found, shot, spans


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
