"""Drawn shots whose transitions are known, and what the detector says of them."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from curation.shots.cuts import CutDetector, Transition

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
