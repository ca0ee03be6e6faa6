"""Text area: drawn text of known extent, frames without any, and the detector's phantom giants."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from curation.scores.base import ClipView
from curation.scores.text import TextArea
from curation.video.decode import Video
from curation.video.resize import FrameResizer
from tests.media import texture


@pytest.fixture(scope="module")
def scorer() -> TextArea:
    scorer = TextArea()
    scorer.load()
    return scorer


def background() -> np.ndarray:
    gray = cv2.GaussianBlur(texture(360, 640), (0, 0), 6)
    return cv2.cvtColor((gray * 0.5 + 30).astype(np.uint8), cv2.COLOR_GRAY2BGR)


def draw(picture: np.ndarray, text: str, *, y: int, scale: float) -> float:
    """Draw centred text and return the share of the frame that its tight box covers."""
    thickness = max(1, round(2 * scale))
    (width, height), descent = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    x = (picture.shape[1] - width) // 2
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (250, 250, 250), thickness, cv2.LINE_AA)
    return width * (height + descent) / (picture.shape[0] * picture.shape[1])


def test_a_frame_without_text_scores_zero(scorer: TextArea):
    assert scorer.area(background()) == 0
    assert scorer.area(np.zeros((360, 640, 3), np.uint8)) == 0


def test_a_caption_scores_about_its_box(scorer: TextArea):
    picture = background()
    share = draw(picture, "the quick brown fox", y=320, scale=1.0)
    assert scorer.area(picture) == pytest.approx(share, rel=0.6)
    two = draw(picture, "jumps over the lazy dog", y=80, scale=1.0)
    assert scorer.area(picture) == pytest.approx(share + two, rel=0.6)


def test_a_giant_title_counts(scorer: TextArea):
    picture = background()
    share = draw(picture, "HELLO", y=240, scale=5.0)
    assert scorer.area(picture) == pytest.approx(share, rel=0.6)


def test_overlapping_boxes_are_a_union(scorer: TextArea, monkeypatch: pytest.MonkeyPatch):
    class Found:
        boxes = np.array([[[0, 0], [100, 0], [100, 50], [0, 50]], [[50, 0], [150, 0], [150, 50], [50, 50]]])
        scores = (0.9, 0.9)

    monkeypatch.setattr(scorer, "_engine", lambda *_, **__: Found)
    assert scorer.area(np.zeros((200, 400, 3), np.uint8)) == pytest.approx(150 * 50 / (200 * 400))


def test_boxes_without_area_cover_nothing_and_crossed_corners_are_no_error(
    scorer: TextArea, monkeypatch: pytest.MonkeyPatch
):
    class Found:
        # A point, a line, and a bow tie.
        boxes = np.array([[[9, 9]] * 4, [[0, 0], [9, 0], [9, 0], [0, 0]], [[0, 0], [100, 100], [100, 0], [0, 100]]])
        scores = (0.9, 0.9, 0.9)

    monkeypatch.setattr(scorer, "_engine", lambda *_, **__: Found)
    (columns,) = scorer.score([ClipView(thumbnails=(np.zeros((200, 400, 3), np.uint8),))])
    assert columns["text_area_error"] is None
    assert columns["text_area"] <= 100 * 100 / (200 * 400)


@pytest.mark.slow
def test_film_without_text_scores_zero(scorer: TextArea, real_videos: Path):
    """On most frames of this film the bare detector takes the whole picture for one giant letter."""
    resizer, areas = FrameResizer(), []
    with open(real_videos / "cc_test_video_30s.mp4", "rb") as file, Video(file) as video:
        for frame in video.frames():
            if frame.index % 60 == 0:
                areas.append(scorer.area(resizer.upright_bgr(frame.av_frame, video.info, long_side_px=640)))
    assert max(areas) < 0.02
    assert sum(area == 0 for area in areas) >= len(areas) - 2


def test_the_clip_scores_its_worst_frame(scorer: TextArea):
    with_text = background()
    draw(with_text, "breaking news", y=200, scale=1.5)
    (columns,) = scorer.score([ClipView(thumbnails=(background(), with_text, background()))])
    assert columns["text_area"] == columns["text_area_frames"][1] > 0
    assert columns["text_area_frames"][0] == 0
    assert columns["text_area_error"] is None
    assert {shown["frame"] for shown in columns["text_boxes"]} == {1}
    height = len(with_text)
    corners = np.concatenate([np.reshape(shown["corners"], (-1, 2)) for shown in columns["text_boxes"]])
    assert (corners >= -0.02).all()
    assert (corners <= 1.02).all()
    assert corners[:, 1].min() * height == pytest.approx(200, abs=height * 0.2)


def test_a_clip_that_cannot_be_scored_is_null_with_a_reason(scorer: TextArea):
    good = ClipView(thumbnails=(background(),))
    broken = ClipView(thumbnails=(np.zeros((0, 10, 3), np.uint8),))
    first, second, third = scorer.score([broken, ClipView(thumbnails=()), good])
    assert first["text_area"] is None
    assert first["text_area_error"]
    assert second["text_area_error"] == "the clip has no thumbnails"
    assert third["text_area"] == 0
