"""Bars are found where every frame has them, and nothing else is taken for a bar."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from clipmill.cropping import Margins
from clipmill.video import Orientation
from curation.inputs.sources import list_sources
from curation.scan.one_pass import Scan, ScanConfig, scan
from curation.shards.clip_row import ExtractedClip, clip_bars
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shots.spans import SpanConfig
from curation.video.decode import Video
from tests.media import panning, write_video

Frames = list[np.ndarray]
OPTIONS = {"crf": "18", "preset": "veryfast", "g": "24"}


def footage(height: int, width: int, frames: int = 72, seed: int = 0) -> Frames:
    return [image[:, :width] for image in panning(height=height, pixels_per_frame=1.5, frames=frames, seed=seed)]


def padded(frames: Frames, margins: tuple[int, int, int, int], colour: tuple[int, int, int] = (0, 0, 0)) -> Frames:
    left, top, right, bottom = margins
    return [cv2.copyMakeBorder(f, top, bottom, left, right, cv2.BORDER_CONSTANT, value=colour) for f in frames]


def scanned(path: Path, extraction: str = "auto") -> Scan:
    source = next(iter(list_sources([str(path)])))
    return scan(source, ScanConfig(spans=SpanConfig(min_s=1.0, max_s=4.0, extraction=extraction)))  # type: ignore[arg-type]


def crops(found: Scan) -> list[tuple[int, ...]]:
    return [tuple(clip[f"crop_{side}"] for side in ("left", "top", "right", "bottom")) for clip in found.clips]


def extracted(path: Path, clip: dict[str, Any]) -> ExtractedClip:
    (result,) = extract_clips(str(path), [clip], "clips", ExtractionConfig())
    assert isinstance(result, ExtractedClip), result
    return result


@pytest.mark.parametrize("margins", [(60, 0, 60, 0), (0, 40, 0, 40), (30, 20, 40, 24), (0, 6, 0, 8), (13, 0, 17, 0)])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (120, 40, 20)])
def test_bars_are_measured_and_cropped(tmp_path: Path, margins: tuple[int, ...], colour: tuple[int, int, int]) -> None:
    content = footage(160, 200)
    path = write_video(tmp_path / "a.mp4", padded(content, margins, colour), options=OPTIONS)  # type: ignore[arg-type]
    found = scanned(path)
    (crop,) = crops(found)
    for got, bar in zip(crop, margins, strict=True):
        assert (got >= bar and got <= bar + 4) if bar else not got
    (clip,) = found.clips
    assert clip["extraction"] == "transcode"
    result = extracted(path, clip)
    assert (result.shape["width"], result.shape["height"]) == (clip["width"], clip["height"])
    assert result.shape["crop"] == [0, 0, 0, 0]
    top, left = crop[1] - margins[1], crop[0] - margins[0]
    (tmp_path / "b.mp4").write_bytes(result.content)
    with (tmp_path / "b.mp4").open("rb") as file, Video(file) as video:
        shown = next(video.frames()).av_frame.to_ndarray(format="bgr24").astype(float)
    expected = content[0][top : top + shown.shape[0], left : left + shown.shape[1]]
    assert np.abs(shown - expected).mean() < 4


def test_scores_are_those_of_the_picture_without_bars(tmp_path: Path) -> None:
    content = footage(160, 200)
    alone = scanned(write_video(tmp_path / "a.mp4", content, options=OPTIONS))
    for margins in ((120, 0, 120, 0), (0, 60, 0, 60)):
        barred = scanned(write_video(tmp_path / "b.mp4", padded(content, margins), options=OPTIONS))
        assert barred.clips[0]["motion"] == pytest.approx(alone.clips[0]["motion"], rel=0.1)
        for plain, jpeg in zip(alone.thumbnails[0], barred.thumbnails[0], strict=True):
            expected, shown = (cv2.imdecode(np.frombuffer(j, np.uint8), cv2.IMREAD_COLOR) for j in (plain, jpeg))
            assert np.abs(np.subtract(shown.shape, expected.shape)).max() <= 6
            outermost = (shown[0], shown[-1], shown[:, 0], shown[:, -1])
            assert min(line.mean() for line in outermost) > 40, "no black line is left"


def test_thumbnails_keep_their_size_without_the_bars(tmp_path: Path) -> None:
    wide = [cv2.resize(frame, (540, 960)) for frame in footage(160, 90, frames=36)]
    path = write_video(tmp_path / "a.mp4", padded(wide, (583, 0, 583, 0)), options=OPTIONS)
    (jpegs,) = scanned(path).thumbnails
    shapes = {cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape for jpeg in jpegs[1:]}
    assert {shape[0] for shape in shapes} == {640}


def disc(side: int) -> np.ndarray:
    return cv2.circle(np.zeros((side, side, 1), np.uint8), (side // 2, side // 2), side // 2 - 1, (1,), -1)


def night() -> Frames:
    """A lit subject in the middle, black around it."""
    return padded([cv2.resize(frame, (90, 90)) * disc(90) for frame in footage(160, 160)], (80, 40, 80, 40))


def thing_on_white() -> Frames:
    things = [cv2.resize(frame, (60, 60)) * disc(60) + 255 * (1 - disc(60)) for frame in footage(160, 160)]
    return padded(things, (70, 60, 70, 60), (255, 255, 255))


def subtitles() -> Frames:
    frames = padded(footage(160, 200), (0, 40, 0, 40))
    return [cv2.putText(f, "subtitle", (40, 225), 0, 0.7, (200, 200, 200), 1) for f in frames]


def a_word_for_a_moment() -> Frames:
    frames = padded(footage(160, 200), (0, 40, 0, 40))
    for image in frames[31:34]:
        cv2.putText(image, "hello", (40, 30), 0, 0.8, (255, 255, 255), 2)
    return frames


def one_side() -> Frames:
    return padded(footage(160, 200), (0, 0, 0, 50))


def black_sky() -> Frames:
    horizon = 60 + 30 * np.sin(np.arange(200) / 15)
    sky = (np.arange(200)[:, None] < horizon).astype(np.uint8)[:, :, None]
    return [np.ascontiguousarray(frame * (1 - sky)) for frame in footage(200, 200)]


def noise_at_one_side() -> Frames:
    frames = padded(footage(160, 200), (40, 0, 40, 0), (60, 60, 60))
    noise = np.random.default_rng(0).integers(0, 60, (72, 160, 280, 1), dtype=np.uint8)
    return [np.where(np.arange(280)[None, :, None] < 40, noise[i], f) for i, f in enumerate(frames)]


@pytest.mark.parametrize(
    "frames",
    [night, thing_on_white, subtitles, a_word_for_a_moment, one_side, black_sky, noise_at_one_side],
)
def test_what_is_no_bar_stays(tmp_path: Path, frames: Callable[[], Frames]) -> None:
    path = write_video(tmp_path / "a.mp4", frames(), options=OPTIONS)
    found = scanned(path)
    assert crops(found) == [(0, 0, 0, 0)] * len(found.clips)
    assert found.clips
    assert {clip["extraction"] for clip in found.clips} == {"remux"}


def test_bars_of_a_part_are_cropped_there(tmp_path: Path) -> None:
    """A phone's clip in the middle of the news."""
    news = footage(160, 280, seed=1)
    phone = padded(footage(160, 90), (94, 0, 96, 0))
    path = write_video(tmp_path / "a.mp4", [*news, *phone, *news], options=OPTIONS)
    found = scanned(path)
    assert [crop[0] > 0 for crop in crops(found)] == [False, True, False]
    assert [clip["extraction"] for clip in found.clips] == ["remux", "transcode", "remux"]
    alone = scanned(write_video(tmp_path / "b.mp4", footage(160, 90), options=OPTIONS))
    assert found.clips[1]["motion"] == pytest.approx(alone.clips[0]["motion"], rel=0.25)
    whole = scanned(write_video(tmp_path / "c.mp4", news, options=OPTIONS))
    assert found.clips[0]["motion"] == pytest.approx(whole.clips[0]["motion"], rel=0.05)


def test_a_clip_that_has_to_be_remuxed_keeps_its_bars_and_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", padded(footage(160, 200), (40, 0, 40, 0)), options=OPTIONS)
    (clip,) = scanned(path, "remux").clips
    assert clip["extraction"] == "remux"
    left, _, right, _ = extracted(path, clip).shape["crop"]
    assert 40 <= min(left, right) <= max(left, right) <= 44


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv444p", "yuv422p"])
def test_bars_in_other_pixel_formats(tmp_path: Path, pixel_format: str) -> None:
    frames = padded(footage(160, 200), (40, 0, 40, 0))
    path = write_video(tmp_path / "a.mp4", frames, options=OPTIONS, pixel_format=pixel_format)
    (crop,) = crops(scanned(path))
    assert 40 <= crop[0] <= 44
    assert crop[1] == crop[3] == 0


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_margins_turn_with_the_picture(rotation: int, mirrored: bool) -> None:
    orientation = Orientation(rotation=rotation, mirrored=mirrored)
    stored = np.zeros((40, 60), np.uint8)
    stored[3:34, 5:59] = 1  # left 5, top 3, right 1, bottom 6
    margins = Margins(left=5, top=3, right=1, bottom=6)
    shown = margins.of_upright(orientation)
    upright = orientation.upright(stored)
    height, width = upright.shape
    assert upright[shown.top : height - shown.bottom, shown.left : width - shown.right].all()
    assert upright.sum() == (height - shown.top - shown.bottom) * (width - shown.left - shown.right)
    assert shown.of_decoded(orientation) == margins


def test_bars_of_wide_pixels_come_back_from_the_row(tmp_path: Path) -> None:
    frames = padded(footage(160, 200), (46, 0, 46, 0))
    path = write_video(tmp_path / "a.mp4", frames, options=OPTIONS, sample_aspect_ratio=Fraction(16, 11))
    (clip,) = scanned(path).clips
    with path.open("rb") as file, Video(file) as video:
        bars = clip_bars(clip, video.info)
    assert 46 <= bars.left <= 50
    assert bars.left % 2 == 0
    assert clip["crop_left"] == round(bars.left * 16 / 11)
    assert extracted(path, clip).shape["width"] == clip["width"] // 2 * 2


def test_thumbnails_get_black_bars_back_that_do_not_last_for_the_whole_clip(tmp_path: Path) -> None:
    """Subtitles from the third second on: those before were thought to be letterboxed."""
    frames = padded(footage(160, 200), (0, 40, 0, 40))
    for image in frames[60:]:
        cv2.putText(image, "subtitle", (40, 237), 0, 0.7, (200, 200, 200), 1)
    found = scanned(write_video(tmp_path / "a.mp4", frames, options=OPTIONS))
    assert crops(found) == [(0, 0, 0, 0)]
    for jpeg, pts in zip(found.thumbnails[0], found.clips[0]["thumbnail_pts"], strict=True):
        shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        frame = round(pts * found.clips[0]["time_base_num"] / found.clips[0]["time_base_den"] * 24)
        assert shown.shape == frames[frame].shape
        assert np.abs(np.subtract(shown, frames[frame], dtype=float)).mean() < 5
