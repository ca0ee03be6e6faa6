"""Wipes between moving shots, and moving edges that are none."""

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from tests.curation.shots.drawn import (
    HEIGHT,
    WIDTH,
    Picture,
    found,
    shot,
    texture,
)


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
