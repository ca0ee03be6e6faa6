"""Frames of clips, read from their spans: which ones, when they are shown, and what is said of files that changed."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmill.errors import SourceError
from curation.inputs.sources import stat_source
from curation.scan.one_pass import ScanConfig, scan
from curation.shards.frames import ClipFrames, read_frames, read_thumbnails
from curation.video.decode import Limits
from tests.media import write_video
from tests.web_server import web_server

FPS = 20
STEP = 4
"""Levels by which each frame is brighter than the one before."""


def ramp(frames: int) -> list[np.ndarray]:
    """Frame i has brightness STEP * i, so that a frame can be told by its brightness."""
    return [np.full((90, 160, 3), STEP * i, np.uint8) for i in range(frames)]


def row_of(path: Path, start: int, end: int, *, pts: list[int] | None = None, base: int = FPS) -> dict[str, Any]:
    """The clip of frames `start` to `end`, exclusive; frame i has the timestamp pts[i]."""
    pts = pts or list(range(end + 1))
    return {
        "clip_id": f"clip-{start}-{end}",
        "source_id": stat_source(str(path)).source_id,
        "start_pts": pts[start],
        "end_pts": pts[end],
        "timestamps": "container",
        "time_base_num": 1,
        "time_base_den": base,
        "frames": end - start,
        "interlaced": "progressive",
        "resume": None,
        **dict.fromkeys(("crop_left", "crop_top", "crop_right", "crop_bottom"), 0),
        "thumbnail_pts": [pts[start], pts[(start + end) // 2], pts[end - 1]],
    }


def read(path: Path, rows: list[dict[str, Any]], count: int | None, long_side_px: int = 80) -> list[list[int]]:
    """Numbers of the frames of each clip."""
    found = read_frames(str(path), rows, count, long_side_px, Limits())
    return [[round(float(image.mean()) / STEP) for image in _frames(each).images()] for each in found]


def _frames(found: ClipFrames | SourceError) -> ClipFrames:
    assert isinstance(found, ClipFrames), found
    return found


def lossless(path: Path, frames: int, pts: list[int] | None = None) -> Path:
    base = Fraction(1, FPS)
    return write_video(
        path, ramp(frames), fps=FPS, codec="ffv1", pixel_format="bgr0", options={}, pts=pts, time_base=base
    )


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return lossless(tmp_path / "ramp.mkv", 60)


def in_ms(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Matroska's time base."""
    for row in rows:
        row["time_base_den"] = 1000
        for name in ("start_pts", "end_pts"):
            row[name] = row[name] * 1000 // FPS
        row["thumbnail_pts"] = [pts * 1000 // FPS for pts in row["thumbnail_pts"]]
    return rows


def test_frames_are_those_shown_in_the_middle_of_equal_parts(video: Path):
    rows = in_ms([row_of(video, 0, 20), row_of(video, 20, 30), row_of(video, 33, 60)])
    assert read(video, rows, 4) == [[2, 7, 12, 17], [21, 23, 26, 28], [36, 43, 49, 56]]
    assert read(video, rows, 1) == [[10], [25], [46]]
    assert read(video, rows[::-1], 1) == [[46], [25], [10]], "in the order given"


def test_every_frame_and_more_frames_than_there_are(video: Path):
    rows = in_ms([row_of(video, 10, 14)])
    assert read(video, rows, None) == [[10, 11, 12, 13]]
    assert read(video, rows, 8) == [[10, 10, 11, 11, 12, 12, 13, 13]]


def test_times_are_from_the_start_of_the_clip_and_sizes_as_asked(video: Path):
    (found,) = read_frames(str(video), in_ms([row_of(video, 20, 40)]), 2, 80, Limits())
    frames = _frames(found)
    assert frames.times_s == pytest.approx([0.25, 0.75])
    assert [image.shape for image in frames.images()] == [(44, 80, 3)] * 2


def test_with_a_variable_rate_a_frame_counts_as_long_as_it_is_shown(tmp_path: Path):
    pts = [0, 1, 2, 3, 20, 21, 22, 40, 44]
    path = lossless(tmp_path / "still.mkv", 8, pts[:-1])
    (row,) = in_ms([row_of(path, 0, 8, pts=pts)])
    assert read(path, [row], 11) == [[2, 3, 3, 3, 3, 6, 6, 6, 6, 6, 7]]  # at ticks 2, 6, 10, ..., 42
    (shown,) = read_frames(str(path), [row], 11, 80, Limits())
    assert _frames(shown).times_s == pytest.approx([pts[i] / FPS for i in (2, 3, 3, 3, 3, 6, 6, 6, 6, 6, 7)])


def test_thumbnails_are_those_of_the_scan(tmp_path: Path):
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 255, (96, 128, 3)).astype(np.float32)
    frames = [np.clip(np.roll(noise, i, axis=1) * (0.5 + i / 200), 0, 255).astype(np.uint8) for i in range(80)]
    path = write_video(tmp_path / "a.mp4", frames, fps=FPS, options={"crf": "20", "g": "15"})
    scanned = scan(stat_source(str(path)), ScanConfig(thumbnail_long_side_px=100))
    assert scanned.clips
    again = read_thumbnails(str(path), scanned.clips, 100, Limits())
    assert [tuple(jpegs) for jpegs in again if not isinstance(jpegs, SourceError)] == scanned.thumbnails


def test_a_file_that_changed_or_lacks_frames_is_an_error_per_clip(video: Path):
    good, beyond, shifted = in_ms([row_of(video, 0, 10), row_of(video, 50, 70), row_of(video, 20, 30)])
    shifted["start_pts"] += 7
    first, second, third = read_frames(str(video), [good, beyond, shifted], 3, 80, Limits())
    assert isinstance(first, ClipFrames)
    assert isinstance(second, SourceError)
    assert "10 frames decoded, expected 20" in second.message
    assert isinstance(third, SourceError)
    assert "no frame with timestamp" in third.message
    video.write_bytes(video.read_bytes() + b"more")
    changed = read_frames(str(video), [good], 3, 80, Limits())[0]
    assert isinstance(changed, SourceError)
    assert "changed since the scan" in changed.message
    video.unlink()
    gone = read_frames(str(video), [good], 3, 80, Limits())[0]
    assert isinstance(gone, SourceError)
    assert gone.kind == "missing"


def test_of_a_source_on_a_server_little_more_than_the_span_is_read(tmp_path: Path):
    """Of an MP4 with its index at the end: also its beginning, twice."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (270, 480, 3), np.uint8) for _ in range(100)]
    options = {"crf": "1", "preset": "ultrafast", "g": "10"}
    video = write_video(tmp_path / "noise.mp4", frames, fps=FPS, options=options, time_base=Fraction(1, FPS))
    content = video.read_bytes()
    span_bytes = 10 * len(content) // len(frames)  # from the keyframe before it to the next
    with web_server() as server:
        server.files["/noise.mp4"] = content
        row = row_of(video, 50, 54, pts=[512 * i for i in range(101)], base=512 * FPS)
        row["source_id"] = stat_source(f"{server.url}/noise.mp4").source_id
        server.asked.clear()
        [found] = read_frames(f"{server.url}/noise.mp4", [row], 4, 80, Limits())
        ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", asked) for _, asked in server.asked if asked]
    assert len(_frames(found).images()) == 4
    read_bytes = sum(int(each[2]) - int(each[1]) + 1 for each in ranges if each)
    assert len(content) > 15 << 20
    assert span_bytes < read_bytes < span_bytes + (4 << 20)
