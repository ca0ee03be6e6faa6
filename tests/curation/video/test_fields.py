"""Interlaced footage is found by its picture, whatever its flags say; what only looks like it stays as it is."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from curation.inputs.sources import list_sources
from curation.scan.one_pass import Scan, ScanConfig, scan
from curation.shards.clip_row import ExtractedClip
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shots.spans import SpanConfig
from curation.video.decode import Video
from curation.video.fields import PROGRESSIVE, FieldMeter, Fields, deinterlaced, deinterlaced_one
from curation.video.timed import Frame
from tests.media import panning, texture, write_video

INFO: Any = None
"""Deinterlacing does not look at it."""
FLAGGED = {"preset": "veryfast", "crf": "16", "flags": "+ildct+ilme", "x264-params": "tff=1"}


def woven(pictures: Sequence[np.ndarray], *, top_first: bool = True) -> list[np.ndarray]:
    """Frames whose even rows are of one picture and whose odd rows of the next, or the other way round."""
    frames = []
    for first, second in zip(pictures[::2], pictures[1::2], strict=False):
        frame = (first if top_first else second).copy()
        frame[1::2] = (second if top_first else first)[1::2]
        frames.append(frame)
    return frames


def pulled_down(film: Sequence[np.ndarray]) -> list[np.ndarray]:
    """3:2 pulldown: A A, B B, B C, C D, D D of each four pictures; top and bottom field."""
    frames = []
    for a, b, c, d in zip(film[::4], film[1::4], film[2::4], film[3::4], strict=False):
        for top, bottom in ((a, a), (b, b), (b, c), (c, d), (d, d)):
            frame = top.copy()
            frame[1::2] = bottom[1::2]
            frames.append(frame)
    return frames


def pan(frames: int, *, pixels: float = 3.0, height: int = 144) -> list[np.ndarray]:
    return panning(height=height, pixels_per_frame=pixels, frames=frames, angle=0.1)


def comb(picture: np.ndarray) -> float:
    """How much more a row differs from its neighbours than they differ from each other: below 0 without a comb."""
    rows = picture.astype(float)
    near = np.abs(rows[1:-1] - rows[:-2]) + np.abs(rows[1:-1] - rows[2:])
    return float(np.log(near.sum() / 2 / np.abs(rows[2:] - rows[:-2]).sum()))


def luma_of(frame: av.VideoFrame) -> np.ndarray:
    return frame.reformat(format="gray").to_ndarray()


def scanned(path: Path, **spans: Any) -> Scan:
    limits = {"min_s": 0.5, "max_s": 2.0} | spans
    return scan(next(iter(list_sources([str(path)]))), ScanConfig(spans=SpanConfig(**limits)))


def seen(pictures: Iterable[np.ndarray], pixel_format: str = "yuv420p") -> Fields:
    """The verdict on every frame."""
    frames = [av.VideoFrame.from_ndarray(bgr, "bgr24").reformat(format=pixel_format) for bgr in pictures]
    meter = FieldMeter()
    for i in range(1, len(frames) - 1):
        meter.look(i, *frames[i - 1 : i + 2])
    return meter.verdict


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p10le", "yuv444p", "gray", "nv12", "yuyv422"])
@pytest.mark.parametrize(("top_first", "order"), [(True, "tff"), (False, "bff")])
def test_both_orders_in_every_layout(pixel_format: str, top_first: bool, order: str) -> None:
    assert seen(woven(pan(24), top_first=top_first), pixel_format) == order


def test_film_in_video() -> None:
    assert seen(pulled_down(pan(24))) == "telecine_tff"


def noisy(pictures: Iterable[np.ndarray], levels: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.clip(p + rng.normal(0, levels, p.shape[:2])[..., None], 0, 255).astype(np.uint8) for p in pictures]


def rings(frames: int) -> list[np.ndarray]:
    """Rings that widen slowly, as fine at the edges as rows are: what moves hardly combs, and does not fit itself."""
    y, x = np.mgrid[-72:72, -128:128]
    waves = (128 + 90 * np.cos(0.01 * (x * x + y * y) - 0.6 * i) for i in range(frames))
    return [wave[..., None].repeat(3, axis=2).astype(np.uint8) for wave in waves]


@pytest.mark.parametrize(("top_first", "order"), [(True, "tff"), (False, "bff")])
def test_fields_have_an_order_where_they_hardly_comb(top_first: bool, order: str) -> None:
    assert seen(woven(rings(64), top_first=top_first)) == order


STRIPES = np.where(np.arange(144)[:, None, None] % 2, 200, 60) * np.ones((144, 256, 3))
PROGRESSIVE_PICTURES = {
    "pan": lambda: pan(24),
    "pan down": lambda: panning(height=144, pixels_per_frame=1, frames=24, angle=np.pi / 2),
    "repeated frames": lambda: [p for p in pan(8) for _ in range(3)],
    "noise": lambda: noisy([np.full((144, 256, 3), 128, np.uint8)] * 24, 25),
    "noisy pan": lambda: noisy(pan(24), 15),
    "rings": lambda: rings(32),
    "noisy rings": lambda: noisy(rings(32), 8),
    "still": lambda: pan(1) * 24,
    "stripes over a pan": lambda: [(0.5 * p + 0.5 * STRIPES).astype(np.uint8) for p in pan(24)],
    "stripes that swap": lambda: [np.roll(STRIPES, i, axis=0).astype(np.uint8) for i in range(24)],
    "text that rolls": lambda: [
        np.roll(np.where(texture(144, 256)[..., None] > 128, 230, 20), -i, axis=0).astype(np.uint8).repeat(3, axis=2)
        for i in range(24)
    ],
    "flicker": lambda: [np.clip(p * (0.6 + 0.4 * (i % 2)), 0, 255).astype(np.uint8) for i, p in enumerate(pan(24))],
    "cuts": lambda: [pan(1)[0] if i % 2 else texture(144, 256, i)[..., None].astype(np.uint8).repeat(3, axis=2)
                     for i in range(24)],
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRESSIVE_PICTURES)
def test_progressive_pictures_stay(name: str) -> None:
    assert seen(PROGRESSIVE_PICTURES[name]()) == PROGRESSIVE


@pytest.mark.parametrize("size", [(2, 2), (9, 300), (300, 9), (1, 64), (64, 1)])
def test_tiny_frames(size: tuple[int, int]) -> None:
    height, width = size
    rng = np.random.default_rng(0)
    frames = [av.VideoFrame.from_ndarray(rng.integers(0, 255, (height, width), np.uint8), "gray") for _ in range(3)]
    FieldMeter().look(0, *frames)


@pytest.mark.parametrize("options", [None, FLAGGED], ids=["not flagged", "flagged"])
def test_interlaced_video(tmp_path: Path, options: dict[str, str] | None) -> None:
    fields = pan(100)
    path = write_video(tmp_path / "a.mp4", woven(fields), fps=25, options=options)
    result = scanned(path)
    assert result.source["interlaced"] == "tff"
    for clip, jpegs in zip(result.clips, result.thumbnails, strict=True):
        assert (clip["interlaced"], clip["extraction"]) == ("tff", "transcode")
        for jpeg in jpegs:
            assert comb(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)) < -0.3
    files = extract_clips(str(path), result.clips, "clips", ExtractionConfig())
    for clip, file in zip(result.clips, files, strict=True):
        assert isinstance(file, ExtractedClip), file
        with av.open(io.BytesIO(file.content)) as container:
            frames = list(container.decode(video=0))
        assert len(frames) == clip["frames"]
        assert [frame.time for frame in frames] == pytest.approx([i / 25 for i in range(len(frames))])
        assert not any(frame.interlaced_frame for frame in frames)
        for i, frame in enumerate(frames):
            picture, true = luma_of(frame), fields[2 * (clip["start_frame"] + i)][..., 0]
            assert comb(picture) < -0.3
            assert cv2.PSNR(picture[8:-8, 8:-8], true[8:-8, 8:-8]) > 28
    (jpeg,) = extract_clips(str(path), result.clips[:1], "images", ExtractionConfig())
    assert isinstance(jpeg, ExtractedClip)
    assert comb(cv2.imdecode(np.frombuffer(jpeg.content, np.uint8), cv2.IMREAD_GRAYSCALE)) < -0.3


def test_progressive_video_with_interlaced_flags_is_copied(tmp_path: Path) -> None:
    result = scanned(write_video(tmp_path / "a.mp4", pan(50), fps=25, options=FLAGGED))
    assert result.source["interlaced"] == PROGRESSIVE
    assert {clip["extraction"] for clip in result.clips} == {"remux"}


def test_film_comes_back_whole(tmp_path: Path) -> None:
    film = pan(80)
    path = write_video(tmp_path / "a.mp4", pulled_down(film), fps=30)
    result = scanned(path)
    assert result.source["interlaced"] == "telecine_tff"
    (file, *_) = extract_clips(str(path), result.clips, "clips", ExtractionConfig())
    assert isinstance(file, ExtractedClip)
    with av.open(io.BytesIO(file.content)) as container:
        pictures = [luma_of(frame) for frame in container.decode(video=0)]
    assert len(pictures) == result.clips[0]["frames"]
    for picture in pictures:
        assert max(cv2.PSNR(picture, true[..., 0]) for true in film) > 32


def test_only_the_interlaced_clip_is_deinterlaced(tmp_path: Path) -> None:
    """A studio in interlaced video, then film: one file, each shot its own."""
    film = panning(height=144, pixels_per_frame=3, frames=50, seed=7)
    path = write_video(tmp_path / "a.mp4", [*woven(pan(100)), *film], fps=25)
    result = scanned(path)
    assert [clip["interlaced"] for clip in result.clips] == ["tff", PROGRESSIVE]
    assert {clip["extraction"] for clip in result.clips} == {"transcode"}
    files = extract_clips(str(path), result.clips, "clips", ExtractionConfig())
    assert isinstance(files[1], ExtractedClip)
    with av.open(io.BytesIO(files[1].content)) as container:
        first = luma_of(next(container.decode(video=0)))
    number = result.clips[1]["start_frame"] - 50
    assert cv2.PSNR(first, film[number][..., 0]) > 36


def test_frames_at_a_clips_ends_have_neighbors(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4", woven(pan(60)), fps=25, options={"crf": "10", "g": "10", "sc_threshold": "0"}
    )
    with path.open("rb") as file, Video(file) as video:
        whole = [Frame(f.index, f.pts, f.av_frame, f.info) for f in video.frames()]
    made = {frame.pts: luma_of(frame.av_frame) for frame in deinterlaced(whole, "tff")}
    assert list(made) == [frame.pts for frame in whole]
    for first, last in ((0, 5), (10, 20), (13, 17), (25, 30)):
        start_pts, end_pts = whole[first].pts, whole[last - 1].pts + 1
        with path.open("rb") as file, Video(file) as video:
            for timestamps in ("container", "rebuilt"):
                near = list(video.frames_between(start_pts, end_pts, timestamps=timestamps, neighbors=True))  # type: ignore[arg-type]
                expected = whole[max(0, first - 1) : last + 1]
                assert [frame.pts for frame in near] == [frame.pts for frame in expected]
                cut = {frame.pts: luma_of(frame.av_frame) for frame in deinterlaced(near, "tff")}
                for frame in whole[first:last]:
                    np.testing.assert_array_equal(cut[frame.pts], made[frame.pts])


def test_one_frame_is_that_of_the_stream(tmp_path: Path) -> None:
    frames = [av.VideoFrame.from_ndarray(bgr, "bgr24").reformat(format="yuv420p") for bgr in woven(pan(20))]
    stream = [f.av_frame for f in deinterlaced([Frame(i, i, frame, INFO) for i, frame in enumerate(frames)], "tff")]
    for i in (0, 4, 9):
        before, after = frames[i - 1] if i else None, frames[i + 1] if i < 9 else None
        one = deinterlaced_one(frames[i], before, after, "tff")
        np.testing.assert_array_equal(luma_of(one), luma_of(stream[i]))


def test_a_change_of_size_starts_anew() -> None:
    frames = [
        av.VideoFrame.from_ndarray(bgr, "bgr24").reformat(format="yuv420p")
        for height in (144, 96)
        for bgr in woven(pan(12, height=height))
    ]
    made = list(deinterlaced((Frame(i, 10 * i, frame, INFO) for i, frame in enumerate(frames)), "bff"))
    assert [(f.pts, f.av_frame.height) for f in made] == [(10 * i, frame.height) for i, frame in enumerate(frames)]
