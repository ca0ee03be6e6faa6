"""Gradual changes of any shape: no mixed frame is left beside them, and little else is taken."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from curation.shots.ends import find_ends
from tests.curation.shots.drawn import HEIGHT, WIDTH, Picture, blend, found, luma, shot

Mix = Callable[[Picture, Picture, float], Picture]
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
FROM_CENTRE = np.hypot(ROWS - HEIGHT / 2, COLUMNS - WIDTH / 2) / np.hypot(HEIGHT / 2, WIDTH / 2)
ANGLE = (np.arctan2(ROWS - HEIGHT / 2, COLUMNS - WIDTH / 2) / np.pi + 1) / 2


def masked(order_HW: np.ndarray) -> Mix:
    """The new shot shows where `order_HW`, 0 to 1, is below the share of the time that has passed."""

    def mix(old: Picture, new: Picture, share: float) -> Picture:
        return np.where((order_HW < share)[..., None], new, old).astype(np.uint8)

    return mix


def soft_circle(old: Picture, new: Picture, share: float) -> Picture:
    mask_HW = np.clip(3 * share - 2 * FROM_CENTRE, 0, 1)[..., None]
    return (old * (1 - mask_HW) + new * mask_HW).astype(np.uint8)


KINDS: dict[str, Mix] = {
    "circle opens": masked(FROM_CENTRE),
    "circle closes": masked(1 - FROM_CENTRE),
    "soft circle": soft_circle,
    "clock": masked(ANGLE),
    "doors": masked(np.abs(COLUMNS / WIDTH - 0.5) * 2),
    "corner": masked(ROWS / HEIGHT / 2 + COLUMNS / WIDTH / 2),
    "dissolve": blend,
}


def visibly_mixed(old: Picture, mixed: Picture, new: Picture) -> bool:
    """Whether some patch of 8 pixels is of neither shot alone."""

    def largest(other: Picture) -> float:
        change = cv2.absdiff(luma(mixed), luma(other))
        return float(cv2.resize(change, (WIDTH // 8, HEIGHT // 8), interpolation=cv2.INTER_AREA).max())

    return min(largest(old), largest(new)) > 4


@pytest.mark.parametrize(
    ("kind", "speed_px_per_s"), [*((kind, speed) for kind in KINDS for speed in (0, 20)), ("dissolve", 40)]
)
@pytest.mark.parametrize("fps", [12, 25, 50])
@pytest.mark.parametrize("duration_s", [0.8, 1.6])
def test_no_mixed_frame_lies_beside_a_gradual_change(kind: str, speed_px_per_s: float, fps: int, duration_s: float):
    before, frames = 3 * fps, round(duration_s * fps)
    old, new = (shot(seed, before + frames, speed_px=speed_px_per_s / fps) for seed in (1, 2))
    mixes = [
        KINDS[kind](a, b, (i + 1) / (frames + 1))
        for i, (a, b) in enumerate(zip(old[before:], new[:frames], strict=True))
    ]
    mixed = [i for i, mix in enumerate(mixes) if visibly_mixed(old[before + i], mix, new[i])]
    # A clip keeps a margin of a tenth of a second, `SpanConfig.gradual_margin_s`.
    (transition,) = found([*old[:before], *mixes, *new[frames:]], fps)
    first, last = before + mixed[0], before + mixed[-1]
    margin, slack = fps // 10, 4 + fps // 3
    assert first - slack <= transition.start_frame <= first + margin
    assert last < transition.end_frame + margin <= last + slack + margin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error_s", [-0.5, -0.2, 0.2, 0.5])
def test_ends_are_found_from_rough_ones(kind: str, error_s: float):
    fps, before, frames = 25, 60, 30
    old, new = (shot(seed, before + frames, speed_px=0.6) for seed in (1, 2))
    mixes = [KINDS[kind](old[before + i], new[i], (i + 1) / (frames + 1)) for i in range(frames)]
    mixed = [before + i for i in range(frames) if visibly_mixed(old[before + i], mixes[i], new[i])]
    lumas = [
        cv2.resize(luma(p), (80, 45), interpolation=cv2.INTER_AREA) for p in [*old[:before], *mixes, *new[frames:]]
    ]
    rough = before - 1 + round(error_s * fps), before + frames + round(error_s * fps)
    start, end = find_ends(lumas, np.arange(len(lumas)) / fps, *rough)
    assert abs(start - mixed[0]) <= 5
    assert abs(end - 1 - mixed[-1]) <= 5


def test_nothing_is_claimed_without_enough_frames():
    pictures = [luma(picture) for picture in shot(1, 6)]
    assert find_ends(pictures, np.arange(6) / 25, 1, 4) == (2, 4)
