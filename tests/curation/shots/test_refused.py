"""Proposed transitions that were refused, and why."""

import re
from collections.abc import Sequence

import cv2
import numpy as np

from curation.shots.cuts import CutDetector
from curation.shots.refused import MOST_REFUSED, RefusedCut, RefusedCuts
from tests.curation.shots.drawn import HEIGHT, WIDTH, Picture, dissolve, found, luma, shot, texture


def refused(pictures: Sequence[Picture], fps: float = 25.0) -> list[RefusedCut]:
    detector = CutDetector()
    for i, picture in enumerate(pictures):
        detector.push(i, i, i / fps, luma(picture))
    return detector.refused.outside(detector.finish())


def hard_refusal(pictures: Sequence[Picture], frame: int) -> str:
    (cut,) = (cut for cut in refused(pictures) if (cut.kind, cut.start_frame, cut.end_frame) == ("hard", frame, frame))
    return cut.reason


def test_a_refused_cut_has_its_frame_and_the_reason() -> None:
    flash = shot(1, 80)
    flash[40] = texture(7)[:HEIGHT, :WIDTH]
    assert hard_refusal(flash, 40) == "a flash: the earlier picture returns within 0.25 s"
    inset = shot(1, 80)
    for picture in inset[40:]:
        picture[5:60, 60:155] = texture(9)[:55, :95]
    assert re.fullmatch(r"(2|3|4)\d% of the frame changed, less than 50%", hard_refusal(inset, 40))
    jerk = [np.roll(picture, 24 * (i >= 40), axis=1) for i, picture in enumerate(shot(1, 80, speed_px=0.2))]
    assert "camera motion" in hard_refusal(jerk, 40)


def test_a_refused_gradual_change_covers_its_frames() -> None:
    zoomed = [cv2.resize(texture(5)[i // 2 : HEIGHT, : WIDTH - i], (WIDTH, HEIGHT)) for i in range(100)]
    changes = [cut for cut in refused(zoomed) if cut.kind == "dissolve"]  # type: ignore[arg-type]
    assert changes
    assert all(0 <= cut.start_frame < cut.end_frame < 100 and cut.reason for cut in changes)


def test_a_cut_is_not_also_refused() -> None:
    pictures = shot(1, 60) + dissolve(shot(1, 85)[60:], shot(2, 25)) + shot(2, 80)[25:] + shot(3, 60)
    transitions = found(pictures)
    assert len(transitions) == 2
    assert not [
        (cut, transition)
        for cut in refused(pictures)
        for transition in transitions
        if cut.start_frame <= transition.end_frame and transition.start_frame <= cut.end_frame
    ]


def test_refused_proposals_are_recorded_once_and_not_without_bound() -> None:
    cuts = RefusedCuts()
    for start in (10, 12, 40):
        cuts.add("dissolve", start, start + 8, "why")
    cuts.add("hard", 12, 12, "why")
    assert [(cut.kind, cut.start_frame) for cut in cuts.outside([])] == [
        ("dissolve", 10),
        ("hard", 12),
        ("dissolve", 40),
    ]
    for frame in range(100, 100 + 2 * MOST_REFUSED):
        cuts.add("hard", frame, frame, "why")
    assert len(cuts.outside([])) == MOST_REFUSED
