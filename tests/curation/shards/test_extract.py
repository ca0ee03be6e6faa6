"""Copies and encodes of one span: the very packets, the very frames, the very times."""

import io
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest

from clipmill.errors import SourceError
from clipmill.video import UPRIGHT
from curation.inputs.sources import list_sources
from curation.scan.one_pass import ScanConfig, scan
from curation.shards.audio import audio_columns
from curation.shards.clip_row import ExtractedClip
from curation.shards.extract import ExtractionConfig, _packets_between, extract_clips
from curation.shots.spans import SpanConfig
from curation.video.decode import Video
from curation.video.display import DisplayTransform
from tests.clean_aperture import with_clean_aperture
from tests.ffmpeg import ffmpeg
from tests.media import panning, write_video

Timed = list[tuple[Fraction, av.VideoFrame]]

X264 = {"preset": "veryfast", "crf": "20", "g": "24", "sc_threshold": "0", "bf": "3"}
OPEN_GOP = {**X264, "x264-params": "open-gop=1:b-pyramid=normal:bframes=3:b-adapt=0:keyint=24:scenecut=0"}
X265 = {
    "preset": "ultrafast",
    "x265-params": "log-level=none:keyint=24:min-keyint=24:scenecut=0:bframes=4:open-gop=1:pools=none:frame-threads=1",
}
VARIABLE_PTS = [i * 40 + (i % 3) * 7 for i in range(96)]
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "b_frames": ("a.mp4", {"options": X264}),
    "open_gop": ("a.mp4", {"options": OPEN_GOP}),
    "open_gop_mkv": ("a.mkv", {"options": OPEN_GOP}),
    "hevc_open_gop": ("a.mp4", {"codec": "libx265", "options": X265}),
    "hevc_10_bit": ("a.mkv", {"codec": "libx265", "options": X265, "pixel_format": "yuv420p10le"}),
    "av1": ("a.mkv", {"codec": "libsvtav1", "options": {"preset": "12", "crf": "40", "g": "24"}}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "g": "24"}}),
    "mpeg4": ("a.mp4", {"codec": "mpeg4", "options": {"g": "24", "bf": "2", "qscale": "4"}}),
    "variable_rate": ("a.mp4", {"options": X264, "pts": VARIABLE_PTS, "time_base": Fraction(1, 1000)}),
    "delayed_start": ("a.mp4", {"options": X264, "pts": [i + 37 for i in range(96)], "time_base": Fraction(1, 24)}),
    "wide_pixels": ("a.mp4", {"options": X264, "sample_aspect_ratio": Fraction(4, 3)}),
}


def make(folder: Path, name: str) -> Path:
    file, options = SOURCES[name]
    return write_video(folder / file, panning(height=96, pixels_per_frame=2, frames=96), **options)


def clips_of(path: Path, extraction: str, **spans: Any) -> list[dict[str, Any]]:
    limits = {"min_s": 0.5, "max_s": 2.0} | spans
    source = next(iter(list_sources([str(path)])))
    return scan(source, ScanConfig(spans=SpanConfig(extraction=extraction, **limits))).clips


def extracted(path: Path, clips: list[dict[str, Any]], config: ExtractionConfig | None = None) -> list[ExtractedClip]:
    results = extract_clips(str(path), clips, "clips", config or ExtractionConfig())
    assert all(isinstance(clip_file, ExtractedClip) for clip_file in results), results
    return results  # type: ignore[return-value]


def wanted(path: Path, clip: dict[str, Any]) -> Timed:
    """The source's frames in the span, timed from its start."""
    base = Fraction(clip["time_base_num"], clip["time_base_den"])
    with path.open("rb") as file, Video(file) as video:
        frames = video.frames_between(clip["start_pts"], clip["end_pts"])
        return [((frame.pts - clip["start_pts"]) * base, frame.av_frame) for frame in frames]


def held(clip_file: ExtractedClip) -> Timed:
    with Video(io.BytesIO(clip_file.content)) as video:
        return [(frame.pts * video.info.time_base, frame.av_frame) for frame in video.frames()]


def packets(file: Any) -> list[tuple[Fraction, bytes]]:
    with av.open(file) as container:
        demuxed = container.demux(container.streams.video[0])
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in demuxed if packet.size]


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    mse = np.mean((a.astype(np.float64) - b) ** 2)
    return 10 * np.log10(255**2 / max(mse, 1e-9))


def luma(picture: av.VideoFrame) -> np.ndarray:
    return picture.to_ndarray()[: picture.height]


def check_remux(path: Path, clip: dict[str, Any], clip_file: ExtractedClip) -> None:
    expected, got = wanted(path, clip), held(clip_file)
    assert len(got) == len(expected) == clip["frames"]
    assert [time for time, _ in got] == [time for time, _ in expected]
    assert all(np.array_equal(a.to_ndarray(), b.to_ndarray()) for (_, a), (_, b) in zip(got, expected, strict=True))
    start_s = clip["start_pts"] * Fraction(clip["time_base_num"], clip["time_base_den"])
    of_source = dict(packets(str(path)))
    copied = packets(io.BytesIO(clip_file.content))
    assert len(copied) == clip["frames"]
    assert all(of_source[start_s + time] == content for time, content in copied)
    assert clip_file.content.index(b"moov") < clip_file.content.index(b"mdat")


def check_transcode(path: Path, clip: dict[str, Any], clip_file: ExtractedClip) -> None:
    expected, got = wanted(path, clip), held(clip_file)
    assert [time for time, _ in got] == [time for time, _ in expected]
    assert len(got) == clip["frames"]
    with path.open("rb") as file, Video(file) as video:
        upright = DisplayTransform(video.info)
    for (_, theirs), (_, ours) in zip(expected, got, strict=True):
        shaped = upright(theirs)
        assert ours.format.name == shaped.format.name == "yuv420p"
        assert psnr_db(luma(shaped), luma(ours)) >= 40
        assert psnr_db(shaped.to_ndarray(format="rgb24"), ours.to_ndarray(format="rgb24")) >= 40
    keys_s = [float(time) for time, picture in got if picture.key_frame]
    assert keys_s[0] == 0
    assert set(map(int, keys_s)) == set(range(int(got[-1][0]) + 1))


@pytest.mark.parametrize("name", SOURCES)
def test_a_copy_holds_the_packets_and_frames_of_its_span(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name)
    clips = clips_of(path, "remux")
    assert len(clips) >= 2
    for clip, clip_file in zip(clips, extracted(path, clips), strict=True):
        check_remux(path, clip, clip_file)


@pytest.mark.parametrize("name", SOURCES)
def test_an_encode_holds_the_frames_of_its_span(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name)
    clips = clips_of(path, "transcode", max_s=1.7)
    assert len(clips) >= 2
    for clip, clip_file in zip(clips, extracted(path, clips), strict=True):
        check_transcode(path, clip, clip_file)


@pytest.mark.parametrize("extraction", ["remux", "transcode"])
def test_the_clock_is_the_sources(tmp_path: Path, extraction: str) -> None:
    path = make(tmp_path, "open_gop_mkv")  # 1/1000: 24 frames per second do not fit evenly
    clip = clips_of(path, extraction)[1]
    content = extracted(path, [clip])[0].content
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.video[0].time_base == Fraction(1, 1000)
        assert container.duration == round(clip["duration_s"] * 1_000_000)


def test_a_copy_keeps_rotation_and_pixel_aspect_as_metadata(real_videos: Path) -> None:
    for name, rotation, aspect in (("psd_rotate.mp4", 90, "1:1"), ("psd_aspect_ratio.mp4", 0, "16:11")):
        path = real_videos / name
        clip = clips_of(path, "remux", min_s=2.0, max_s=20.0)[0]
        clip_file = extracted(path, [clip])[0]
        check_remux(path, clip, clip_file)
        with path.open("rb") as file, Video(file) as source, Video(io.BytesIO(clip_file.content)) as video:
            assert (video.info.width, video.info.height) == (source.info.width, source.info.height)
            assert video.info.orientation.rotation == clip_file.shape["rotation"] == rotation
            assert clip_file.shape["sample_aspect_ratio"] == aspect


def test_a_copy_is_described_with_its_orientation_aspect_and_margins(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.mp4", tmp_path / "a.mp4"
    with av.open(str(whole), "w") as container:
        stream = container.add_stream("libx264", rate=24, options=X264, width=96, height=64)
        stream.thread_count, stream.codec_context.sample_aspect_ratio = 1, Fraction(4, 3)
        stream.set_display_rotation(-90)
        for image in panning(height=64, pixels_per_frame=1, frames=24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:, :96]), "bgr24")))
        container.mux(stream.encode(None))
    path.write_bytes(with_clean_aperture(whole.read_bytes()))
    (clip,) = clips_of(path, "remux")
    (clip_file,) = extracted(path, [clip | {"extraction": "remux"}])
    assert (clip_file.suffix, clip_file.audio) == ("mp4", audio_columns(None))
    assert clip_file.shape == {
        "codec": "h264",
        "pixel_format": "yuv420p",
        "width": 96,
        "height": 64,
        "rotation": 90,
        "mirrored": False,
        "sample_aspect_ratio": "4:3",
        "crop": [16, 18, 24, 6],
    }


def test_a_copy_keeps_the_sample_entry_of_its_source(tmp_path: Path) -> None:
    """`hvc1` has its parameter sets in the index alone, `hev1` may have them between its packets."""
    hev1 = make(tmp_path, "hevc_open_gop")
    hvc1 = tmp_path / "hvc1.mp4"
    ffmpeg("-i", hev1, "-c", "copy", "-tag:v", "hvc1", hvc1)
    for path, tag in ((hev1, b"hev1"), (hvc1, b"hvc1")):
        clip_file = extracted(path, clips_of(path, "remux"))[0]
        assert [name for name in (b"hev1", b"hvc1") if name in clip_file.content] == [tag]


def test_a_packet_without_timestamp_is_not_copied() -> None:
    stamps = iter([-1, 0, None])
    video = SimpleNamespace(demux=lambda _: (SimpleNamespace(pts=pts) for pts in stamps))
    reason = r"\Adecode_error: a packet has no timestamp: the file differs from the scan\Z"
    with pytest.raises(SourceError, match=reason):
        _packets_between(video, 0, 10)  # type: ignore[arg-type]


def test_another_frame_rate_is_given_to_clips_that_have_another(tmp_path: Path) -> None:
    path = make(tmp_path, "b_frames")
    clips = clips_of(path, "transcode")
    as_they_are, the_same, resampled = (
        extract_clips(str(path), clips, "clips", ExtractionConfig(), fps) for fps in (None, Fraction(24), Fraction(8))
    )
    assert the_same == as_they_are
    for clip, clip_file in zip(clips, resampled, strict=True):
        assert isinstance(clip_file, ExtractedClip), clip_file
        frames = held(clip_file)
        assert [time for time, _ in frames] == [Fraction(i, 8) for i in range(len(frames))]
        nearest = [picture for _, picture in wanted(path, clip)[::3]]
        assert len(frames) == len(nearest)
        for (_, ours), theirs in zip(frames, nearest, strict=True):
            assert psnr_db(luma(theirs), luma(ours)) >= 38


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["psd_rotate.mp4", "psd_aspect_ratio.mp4", "tc_hevc_10bit.mp4", "psd_vfr.mp4", "tc_av1.mkv", "mma_struct.mp4"],
)
def test_real_footage_encodes_upright_with_square_pixels(real_videos: Path, name: str) -> None:
    path = real_videos / name
    clip = clips_of(path, "transcode", min_s=0.5, max_s=3.0)[0]
    clip_file = extracted(path, [clip])[0]
    check_transcode(path, clip, clip_file)
    with Video(io.BytesIO(clip_file.content)) as video:
        assert (video.info.coded_width, video.info.coded_height) == (clip["width"], clip["height"])
        assert (video.info.orientation, video.info.sample_aspect_ratio) == (UPRIGHT, 1)
        assert video.info.codec == "h264"


def test_rotation_is_baked_in_the_right_way_round(tmp_path: Path) -> None:
    images = [frame[:, :160] // 2 for frame in panning(height=96, pixels_per_frame=1, frames=24)]
    for image in images:
        image[:48, :80] += 120  # top left as stored: top right once turned clockwise
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options=X264, width=160, height=96)
        stream.thread_count = 1
        stream.set_display_rotation(-90)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        container.mux(stream.encode(None))
    clip = clips_of(path, "transcode")[0]
    picture = held(extracted(path, [clip])[0])[0][1]
    assert (picture.width, picture.height) == (96, 160)
    y = luma(picture)
    quarters = [y[:80, :48].mean(), y[:80, 48:].mean(), y[80:, :48].mean(), y[80:, 48:].mean()]
    assert np.argmax(quarters) == 1


def test_grain_that_the_first_rate_factor_would_smooth_still_reaches_40_db(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grainy = [
        np.clip(frame + rng.normal(0, 12, frame.shape), 0, 255).astype(np.uint8)
        for frame in panning(height=96, pixels_per_frame=2, frames=30)
    ]
    path = write_video(tmp_path / "grain.mp4", grainy, options={"preset": "veryfast", "qp": "4"})
    clip = clips_of(path, "transcode")[0]
    first_try = extracted(path, [clip], ExtractionConfig(min_psnr_db=30.0))[0]
    clip_file = extracted(path, [clip])[0]
    assert first_try.shape["psnr_db"] < 40 <= clip_file.shape["psnr_db"]
    check_transcode(path, clip, clip_file)


def test_colour_tags_are_carried_over(tmp_path: Path) -> None:
    path = tmp_path / "tagged.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options=X264, width=160, height=96)
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, 14, 2
        for image in panning(height=96, pixels_per_frame=1, frames=24):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:, :160]), "bgr24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = clips_of(path, "transcode")[0]
    picture = held(extracted(path, [clip])[0])[0][1]
    tags = (picture.colorspace, picture.color_primaries, picture.color_trc, picture.color_range)
    assert tuple(map(int, tags)) == (9, 9, 14, 2)


def test_odd_sizes_lose_a_column_and_nothing_else(tmp_path: Path) -> None:
    options = {"preset": "veryfast", "qp": "0"}
    frames = [frame[:95, :169] for frame in panning(height=96, pixels_per_frame=2, frames=24)]
    path = write_video(tmp_path / "odd.mp4", frames, options=options, pixel_format="yuv444p")
    clip = clips_of(path, "transcode")[0]
    clip_file = extracted(path, [clip])[0]
    assert (clip_file.shape["width"], clip_file.shape["height"]) == (168, 94)
    original = wanted(path, clip)[0][1].to_ndarray()[0, :94, :168]
    assert psnr_db(original, luma(held(clip_file)[0][1])) >= 40


def test_clips_taken_together_are_those_taken_alone(tmp_path: Path) -> None:
    one_keyframe = {**X264, "g": "1000"}
    path = write_video(tmp_path / "a.mp4", panning(height=96, pixels_per_frame=2, frames=96), options=one_keyframe)
    clips = clips_of(path, "transcode", max_s=1.2)
    assert len(clips) >= 3
    together = extracted(path, [clips[2], clips[0], clips[1]])
    alone = [extracted(path, [clip])[0] for clip in (clips[2], clips[0], clips[1])]
    assert together == alone


@pytest.mark.slow
def test_taking_twice_gives_the_same_bytes(real_videos: Path) -> None:
    path = real_videos / "mma_struct.mp4"  # 426 pixels wide: x264's AVX-512 code once gave each run other bytes here
    clip = clips_of(path, "transcode", min_s=0.5, max_s=2.0)[0]
    assert len({extracted(path, [clip])[0].content for _ in range(4)}) == 1


def test_an_image_is_the_middle_frame_at_full_size_and_upright(real_videos: Path) -> None:
    path = real_videos / "psd_rotate.mp4"
    clip = clips_of(path, "auto", min_s=2.0, max_s=20.0)[0]
    clip_file = extract_clips(str(path), [clip], "images", ExtractionConfig())[0]
    assert isinstance(clip_file, ExtractedClip)
    image = cv2.imdecode(np.frombuffer(clip_file.content, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (1280, 544, 3)
    assert (
        abs(clip_file.shape["pts"] - (clip["start_pts"] + clip["end_pts"]) / 2)
        * clip["time_base_num"]
        / clip["time_base_den"]
        < 0.25
    )
    base = Fraction(clip["time_base_num"], clip["time_base_den"])
    frames = dict(wanted(path, clip))
    original = frames[(clip_file.shape["pts"] - clip["start_pts"]) * base].to_ndarray(format="bgr24", src_colorspace=5)
    assert psnr_db(cv2.rotate(original, cv2.ROTATE_90_CLOCKWISE), image) >= 35


@pytest.mark.parametrize("name", ["b_frames", "wide_pixels"])
def test_an_image_is_the_frame_that_the_scorers_took_for_the_middle(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name)
    first, second = clips_of(path, "auto")[:2]
    results = extract_clips(str(path), [second, first], "images", ExtractionConfig())
    for clip, clip_file in zip((second, first), results, strict=True):
        assert isinstance(clip_file, ExtractedClip)
        height, width = (96, 170) if name == "b_frames" else (96, 228)  # 170 * 4 / 3, made even
        middle_pts = clip["thumbnail_pts"][1]
        assert clip_file.suffix == "jpg"
        size = {"width": width, "height": height}
        assert clip_file.shape == {"codec": "jpeg", **size, "pts": middle_pts, "picture": 0, "pictures": 1}
        image = cv2.imdecode(np.frombuffer(clip_file.content, np.uint8), cv2.IMREAD_COLOR)
        base = Fraction(clip["time_base_num"], clip["time_base_den"])
        original = dict(wanted(path, clip))[(middle_pts - clip["start_pts"]) * base].to_ndarray(format="bgr24")
        assert image.shape == (height, width, 3)
        assert psnr_db(cv2.resize(original, (width, height), interpolation=cv2.INTER_AREA), image) >= 30
    (coarse,) = extract_clips(str(path), [first], "images", ExtractionConfig(jpeg_quality=20))
    assert isinstance(coarse, ExtractedClip)
    assert len(coarse.content) < len(results[1].content) / 2  # type: ignore[union-attr]


def test_an_image_that_is_not_there_fails_alone_and_says_why(tmp_path: Path) -> None:
    path = make(tmp_path, "b_frames")
    good, clip = clips_of(path, "auto")[:2]
    pts = clip["thumbnail_pts"][1]
    before, beyond = pts - 1, clip["end_pts"]
    bad = [
        clip | {"clip_id": "none", "thumbnail_pts": []},
        clip | {"clip_id": "before", "thumbnail_pts": [0, before, 0]},
        clip | {"clip_id": "beyond", "thumbnail_pts": [0, beyond, 0]},
    ]
    *errors, picture = extract_clips(str(path), [*bad, good], "images", ExtractionConfig())
    assert isinstance(picture, ExtractedClip)
    assert [str(error) for error in errors] == [
        "decode_error: the scan kept no thumbnail for this clip",
        f"decode_error: no frame with timestamp {before} could be decoded: the file differs from the scan",
        f"decode_error: no frame with timestamp {beyond} could be decoded: the file differs from the scan",
    ]


@pytest.mark.parametrize("extraction", ["remux", "transcode"])
def test_what_is_not_as_scanned_is_said_in_full(tmp_path: Path, extraction: str) -> None:
    path = make(tmp_path, "b_frames")
    good, other = clips_of(path, extraction)[:2]
    start_pts, frames = other["start_pts"], other["frames"]
    bad = [
        other | {"clip_id": "shifted", "start_pts": start_pts + 1},
        other | {"clip_id": "short", "frames": frames + 1},
    ]
    found, *others = extract_clips(str(path), [good, *bad], "clips", ExtractionConfig())
    assert isinstance(found, ExtractedClip)
    expected = {
        "remux": [
            f"no packet with timestamp {start_pts + 1} found: the file differs from the scan",
            f"{frames} packets found, expected {frames + 1}: the file differs from the scan",
        ],
        "transcode": [
            f"no frame with timestamp {start_pts + 1}: the file differs from the scan",
            f"{frames} frames decoded, expected {frames + 1}: the file differs from the scan",
        ],
    }
    assert [str(error) for error in others] == [f"decode_error: {message}" for message in expected[extraction]]
    os.utime(path, ns=(1, 1))
    (changed,) = extract_clips(str(path), [good], "clips", ExtractionConfig())
    assert str(changed) == ("unreadable: the file has changed since the scan: its size or version differs")


def test_a_span_beyond_the_end_of_the_source_fails_alone(tmp_path: Path) -> None:
    path = make(tmp_path, "b_frames")
    good, other = clips_of(path, "transcode")[:2]
    far = {"clip_id": "far", "start_pts": other["start_pts"] + 10**7, "end_pts": other["end_pts"] + 10**7}
    found, error = extract_clips(str(path), [good, other | far], "clips", ExtractionConfig())
    assert isinstance(found, ExtractedClip)
    assert str(error) == f"decode_error: 0 frames decoded, expected {other['frames']}: the file differs from the scan"


def test_an_encode_has_a_keyframe_every_second_and_no_other(tmp_path: Path) -> None:
    for name in ("b_frames", "variable_rate"):
        path = make(tmp_path, name)
        (clip_file,) = extracted(path, clips_of(path, "transcode", min_s=1.0, max_s=60.0))
        with av.open(io.BytesIO(clip_file.content)) as container:
            stream = container.streams.video[0]
            shown = sorted(
                (packet.pts * packet.time_base, packet.is_keyframe) for packet in container.demux(stream) if packet.size
            )
        first_of_seconds = [time // 1 != before // 1 for (before, _), (time, _) in pairwise(shown)]
        assert [is_key for _, is_key in shown] == [True, *first_of_seconds]
        assert sum(first_of_seconds) >= 3


def reasons(path: Path, clips: list[dict[str, Any]]) -> list[str]:
    results = extract_clips(str(path), clips, "clips", ExtractionConfig())
    return [str(clip_file) if isinstance(clip_file, SourceError) else "" for clip_file in results]


def test_a_source_that_is_gone_or_changed_fails_with_the_reason(tmp_path: Path) -> None:
    path = make(tmp_path, "b_frames")
    clips = clips_of(path, "auto")
    os.utime(path, ns=(1, 1))
    assert all("changed since the scan" in reason for reason in reasons(path, clips))
    path.unlink()
    assert all("no file exists at this address" in reason for reason in reasons(path, clips))


@pytest.mark.parametrize("extraction", ["remux", "transcode"])
def test_a_span_that_is_not_in_the_source_fails_alone(tmp_path: Path, extraction: str) -> None:
    path = make(tmp_path, "b_frames")
    good, other = clips_of(path, extraction)[:2]
    shifted = other | {"clip_id": "shifted", "start_pts": other["start_pts"] + 1}
    short = other | {"clip_id": "short", "frames": other["frames"] + 1}
    for bad in (shifted, short):
        found = reasons(path, [bad, good])
        assert "differs from the scan" in found[0]
        assert found[1] == ""
