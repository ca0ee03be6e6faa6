"""The scan on every kind of video and on everything that is not quite one."""

import itertools
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.errors import SourceError
from clipmill.video import Orientation
from curation.dataset.schemas import SOURCES
from curation.inputs.sources import Source, list_sources
from curation.scan.one_pass import OnePass, Scan, ScanConfig, fits_mp4, scan
from curation.scan.thumbnail_spool import ThumbnailSpool
from curation.scan.validate import check_scan
from curation.video.decode import Limits, Video
from curation.video.info import VideoInfo
from curation.video.packets import PacketIndex
from curation.video.resize import FrameResizer
from curation.video.timed import Frame
from tests.media import panning, write_video

LOSSES = tuple(name for name in SOURCES.names if name.startswith("lost_"))


def scan_file(path: Path, **limits: float) -> Scan:
    (source,) = list_sources([str(path)])
    return scan(source, ScanConfig(limits=Limits(**limits)))


def rejection(path: Path, **limits: float) -> SourceError:
    with pytest.raises(SourceError) as caught:
        scan_file(path, **limits)
    return caught.value


@pytest.fixture(scope="module")
def pan() -> list[np.ndarray]:
    return panning(height=180, pixels_per_frame=2, frames=75)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"crf": "20", "bf": "3"}),
        ("a.mp4", "libx265", {"crf": "20", "x265-params": "log-level=none"}),
        ("a.mkv", "libx265", {"crf": "20", "x265-params": "log-level=none"}),
        ("a.webm", "libvpx-vp9", {"crf": "30", "b": "0", "cpu-used": "8"}),
        ("a.mkv", "libsvtav1", {"crf": "35", "preset": "12", "svtav1-params": "lp=1"}),
        ("a.mp4", "mpeg4", {"qscale": "3"}),
        ("a.avi", "mpeg4", {"qscale": "3"}),
        ("a.ts", "libx264", {"crf": "20", "bf": "2"}),
        ("a.flv", "libx264", {"crf": "20"}),
    ],
)
def test_every_codec_and_container_gives_the_same_clip(tmp_path: Path, pan, name: str, codec: str, options: dict):
    found = scan_file(write_video(tmp_path / name, pan, fps=25, codec=codec, options=options))
    assert (found.source["frames"], found.source["width"], found.source["height"]) == (75, 320, 180)
    assert found.source["fps"] == pytest.approx(25, rel=0.01)
    assert not found.source["variable_fps"]
    (clip,) = found.clips
    assert clip["frames"] == 75
    assert clip["duration_s"] == pytest.approx(3.0, abs=0.06)
    assert clip["motion"] == pytest.approx(2 * 25 / 180 * 100, rel=0.12)
    assert len(found.thumbnails[0]) == 3
    assert clip["extraction"] == ("remux" if name.endswith(("mp4", "mkv", "webm")) else "transcode")


@pytest.mark.slow
def test_ten_bit_and_other_pixel_formats(tmp_path: Path, pan):
    for codec, pixel_format in (("libx265", "yuv420p10le"), ("libx264", "yuv444p"), ("libx264", "yuv422p")):
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        path = write_video(tmp_path / "a.mp4", pan, codec=codec, pixel_format=pixel_format, options=options)
        (clip,) = scan_file(path).clips
        assert clip["motion"] == pytest.approx(2 * 24 / 180 * 100, rel=0.12)


def test_a_variable_rate_and_a_late_start_keep_their_timestamps(tmp_path: Path, pan):
    pts = list(np.cumsum([5000] + [1 if i % 3 else 4 for i in range(74)]))
    pts = [int(p) * 10 for p in pts]
    path = write_video(tmp_path / "a.mkv", pan, pts=pts, time_base=Fraction(1, 1000))
    found = scan_file(path)
    assert found.source["variable_fps"]
    assert found.source["start_s"] == pytest.approx(50.0)
    assert found.source["fps"] == pytest.approx(74 / (pts[-1] - pts[0]) * 1000)


def test_thumbnails_lie_within_the_clip_and_a_quarter_second_of_its_ends(real_videos: Path):
    found = scan_file(real_videos / "psd_testvideo.mp4")
    assert found.clips
    for clip, jpegs in zip(found.clips, found.thumbnails, strict=True):
        seconds = [pts * clip["time_base_num"] / clip["time_base_den"] for pts in clip["thumbnail_pts"]]
        assert clip["start_s"] <= seconds[0] <= clip["start_s"] + 0.25
        assert clip["end_s"] - 0.25 - 1 / clip["fps"] <= seconds[2] < clip["end_s"]
        assert seconds[1] == pytest.approx((clip["start_s"] + clip["end_s"]) / 2, abs=0.25)
        assert all(jpeg.startswith(b"\xff\xd8") for jpeg in jpegs)


@pytest.mark.slow
def test_every_real_file_is_scanned_and_its_footage_adds_up(real_videos: Path):
    for source in list_sources([str(real_videos)]):
        if "v2d" in source.uri:  # the one long file; the benchmark covers it
            continue
        row = scan(source).source
        assert row["duration_s"] == pytest.approx(row["clip_s"] + sum(row[k] for k in LOSSES))
        assert row["frames"] > 0


@pytest.mark.slow
def test_rotation_pixel_aspect_and_late_start_of_real_files(real_videos: Path):
    rows = {
        name: scan_file(real_videos / f"{name}.mp4").source
        for name in ("psd_rotate", "psd_aspect_ratio", "psd_delayed_start", "psd_vfr")
    }
    assert (rows["psd_rotate"]["width"], rows["psd_rotate"]["height"], rows["psd_rotate"]["rotation"]) == (
        544,
        1280,
        90,
    )
    assert (rows["psd_aspect_ratio"]["width"], rows["psd_aspect_ratio"]["height"]) == (1024, 576)
    assert rows["psd_delayed_start"]["start_s"] == pytest.approx(13760 / 12800)
    assert rows["psd_vfr"]["variable_fps"]


def test_what_is_no_video_is_rejected_by_kind(tmp_path: Path, pan):
    files = {
        "empty": (b"", "empty"),
        "text": (b"this is not a video\n" * 50, "not_video"),
        "m3u8": (b"#EXTM3U\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n", "unsupported_container"),
        "concat": (b"ffconcat version 1.0\nfile other.mp4\n", "unsupported_container"),
        "noise": (random.Random(0).randbytes(5000), "not_video"),
    }
    write_video(tmp_path / "other.mp4", pan)
    for name, (content, kind) in files.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        error = rejection(path)
        assert (error.kind, bool(error.message)) == (kind, True)


def test_a_playlist_that_is_not_recognised_by_its_first_bytes_cannot_reach_other_files(tmp_path: Path, pan):
    write_video(tmp_path / "other.mp4", pan)
    (tmp_path / "sneaky.mp4").write_bytes(b"\n\n \t#EXTM3U\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n")
    assert rejection(tmp_path / "sneaky.mp4").kind == "unsupported_container"


def test_audio_alone_has_no_video_stream(tmp_path: Path):
    for name, codec in (("a.mp4", "aac"), ("a.wav", "pcm_s16le")):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=44100, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.int16), "s16", "mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        error = rejection(tmp_path / name)
        assert error.kind == "no_video_stream"
        assert "audio" in error.message


def test_limits_on_bytes_pixels_duration(tmp_path: Path, pan):
    path = write_video(tmp_path / "a.mp4", pan)
    assert rejection(path, max_bytes=1000).kind == "too_large"
    assert rejection(path, max_pixels=1000).kind == "too_large"
    assert rejection(path, max_duration_s=1.0).kind == "too_long"


def test_giant_frames_are_refused_before_they_are_decoded(tmp_path: Path):
    small = write_video(
        tmp_path / "small.mkv", [np.zeros((320, 320, 3), np.uint8)], codec="mjpeg", pixel_format="yuvj420p"
    )
    content = small.read_bytes()
    for side in (b"\xb0\x82", b"\xba\x82"):  # Matroska's PixelWidth and PixelHeight
        assert side + b"\x01\x40" in content
        content = content.replace(side + b"\x01\x40", side + b"\x40\x00")
    content = content.replace(b"\x08\x01\x40\x01\x40", b"\x08\x40\x00\x40\x00")  # the JPEG's own frame header
    assert b"Lavf" in content
    path = tmp_path / "giant.mkv"
    for tagged in (content, content.replace(b"Lavf", b"L\x80vf")):  # a tag that is not UTF-8 must not matter
        path.write_bytes(tagged)
        error = rejection(path)
        assert error.kind == "too_large"
        assert "16384x16384" in error.message


def test_one_frame_is_a_source_without_clips(tmp_path: Path, pan):
    found = scan_file(write_video(tmp_path / "a.mp4", pan[:1]))
    assert (found.source["frames"], found.source["fps"], found.clips) == (1, None, [])
    assert "no shot yields a clip" in found.source["note"]


@pytest.mark.slow
def test_the_readable_part_of_a_truncated_file_is_kept(tmp_path: Path, pan):
    frames = pan + pan[::-1]
    options = {"crf": "18", "g": "25", "movflags": "faststart"}
    whole = write_video(tmp_path / "whole.mkv", frames, options={"crf": "18", "g": "25"})
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10])
    found = scan_file(cut)
    assert 60 < found.source["frames"] < 140
    assert found.clips
    assert "could be read" in found.source["note"]
    whole = write_video(tmp_path / "whole.mp4", frames, options=options)
    headless = tmp_path / "headless.mp4"
    headless.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    error = rejection(headless)  # PyAV writes the index at the end, and it is gone
    assert error.kind == "decode_error"
    assert "truncated" in error.message


@pytest.mark.slow
def test_flipped_bytes_cost_the_damaged_stretch_only(tmp_path: Path, pan):
    frames = (pan + pan[::-1]) * 2
    whole = write_video(tmp_path / "whole.mp4", frames, options={"crf": "18", "g": "50"})
    content = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    position, length = packets[110]
    content[position : position + length] = b"\xff" * length
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(bytes(content))
    found = scan_file(broken)
    assert found.source["status"] == "ok"
    assert found.source["lost_damage_s"] > 0
    damage = [t for t in found.source["transitions"] if t["kind"] == "damage"]
    assert damage
    for clip in found.clips:
        last = clip["start_frame"] + clip["frames"]
        assert last <= damage[0]["start_frame"] or clip["start_frame"] >= damage[-1]["end_frame"]
    assert sum(clip["duration_s"] for clip in found.clips) > 4


@pytest.mark.slow
def test_random_damage_never_raises_anything_but_a_source_error(tmp_path: Path, pan):
    whole = write_video(tmp_path / "whole.mp4", pan, options={"crf": "22", "g": "12"}).read_bytes()
    chance = random.Random(5)
    for i in range(25):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 10, 200])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path = tmp_path / f"{i}.mp4"
        path.write_bytes(bytes(content))
        try:
            row = scan_file(path).source
        except SourceError:
            continue
        assert row["duration_s"] == pytest.approx(row["clip_s"] + sum(row[k] for k in LOSSES))


def test_a_stream_that_appears_half_way_ends_nothing(tmp_path: Path):
    """FFmpeg looks at the first and the last 250 KB of a transport stream; what comes between is news to PyAV."""
    frames = panning(height=48, pixels_per_frame=1, frames=24)
    alone = write_video(tmp_path / "alone.ts", frames, options={"crf": "1"}).read_bytes()
    with av.open(str(tmp_path / "sound.ts"), "w") as container:
        container.add_stream("libx264", rate=24)
        sound = container.add_stream("mp2", rate=48_000)
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1152), np.int16), "s16", "stereo")
            frame.sample_rate, frame.pts = 48_000, 1152 * i
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    around = alone * (400_000 // len(alone) + 1)
    (tmp_path / "late.ts").write_bytes(around + (tmp_path / "sound.ts").read_bytes() + around)
    with av.open(str(tmp_path / "late.ts")) as container:
        assert len(container.streams) == 1
    assert scan_file(tmp_path / "late.ts").source["status"] == "ok"


def test_a_source_found_unusable_when_listed_stays_so():
    error = SourceError("missing", "no file exists at this address")
    with pytest.raises(SourceError, match="missing"):
        scan(Source(uri="nowhere.mp4", error=error))


def test_the_clip_id_is_stable_and_holds_no_dot(tmp_path: Path, pan):
    path = write_video(tmp_path / "a.b.mp4", pan)
    first, second = scan_file(path), scan_file(path)
    assert [c["clip_id"] for c in first.clips] == [c["clip_id"] for c in second.clips]
    assert all("." not in c["clip_id"] and c["clip_id"].startswith(c["source_id"]) for c in first.clips)


def inspect_pts(tmp_path: Path, pan: list[np.ndarray], milliseconds: list[int], **options: object) -> Scan:
    path = write_video(tmp_path / "a.mkv", pan, pts=milliseconds, time_base=Fraction(1, 1000), **options)  # type: ignore[arg-type]
    return scan_file(path)


def test_a_still_lies_in_no_clip(tmp_path: Path, pan):
    frames = pan + pan[::-1]
    without_b_frames = {"crf": "18", "preset": "veryfast", "bf": "0"}  # a clip could end a few frames before the still
    pts = [40 * i + (98_000 if i >= 75 else 0) for i in range(150)]
    found = inspect_pts(tmp_path, frames, pts, options=without_b_frames)
    assert [clip["frames"] for clip in found.clips] == [74, 75]
    assert all(clip["duration_s"] < 20 for clip in found.clips)
    assert found.source["lost_still_s"] == pytest.approx(98.04)
    assert found.source["variable_fps"]


def test_a_picture_that_stands_still_for_seconds_is_seen_by_the_scorers(tmp_path: Path, pan):
    """Three frames in a hurry, then one that stays: a clip of one frame needs its thumbnails, too."""
    other = [255 - frame for frame in pan]
    found = inspect_pts(tmp_path, pan[:60] + other[:1] + pan[:60], [*range(0, 2400, 40), 2400, *range(9000, 11400, 40)])
    assert all(len(jpegs) == 3 for jpegs in found.thumbnails)
    assert all(clip["thumbnail_pts"] for clip in found.clips)


@pytest.mark.slow
def test_a_change_of_size_is_a_cut_and_each_clip_has_its_own(tmp_path: Path, pan):
    small = write_video(tmp_path / "small.ts", pan, options={"crf": "20", "bf": "0"})
    large = panning(height=360, pixels_per_frame=2, frames=75)
    options = {"crf": "20", "bf": "0", "output_ts_offset": "10"}
    path = tmp_path / "both.ts"
    later = write_video(tmp_path / "large.ts", large, pts=list(range(75, 150)), options=options)
    path.write_bytes(small.read_bytes() + later.read_bytes())
    found = scan_file(path)
    assert [(clip["width"], clip["height"]) for clip in found.clips] == [(320, 180), (640, 360)]
    assert [t["kind"] for t in found.source["transitions"]] == ["hard"]


def test_recordings_joined_end_to_end_go_on_with_a_cut(tmp_path: Path, pan):
    one = write_video(tmp_path / "one.ts", pan, options={"crf": "20", "bf": "0"}).read_bytes()
    (tmp_path / "two.ts").write_bytes(one + one)
    found = scan_file(tmp_path / "two.ts")
    assert (found.source["frames"], found.source["timestamps"]) == (150, "rebuilt")
    assert [(t["kind"], t["start_frame"]) for t in found.source["transitions"]] == [("hard", 75)]
    assert [clip["frames"] for clip in found.clips] == [75, 75]


def test_a_jump_ahead_beyond_all_limits_is_closed(tmp_path: Path, pan):
    found = inspect_pts(tmp_path, pan[:60] + pan[:50], [40 * i + ((1 << 40) if i >= 60 else 0) for i in range(110)])
    assert (found.source["frames"], [clip["frames"] for clip in found.clips]) == (110, [60, 50])
    assert found.source["duration_s"] == pytest.approx(4.4, abs=0.01)


def test_jumps_ahead_do_not_make_a_video_too_long(tmp_path: Path, pan):
    path = write_video(
        tmp_path / "a.mkv", pan, pts=[40 * i + 3_000_000 * (i // 60) for i in range(75)], time_base=Fraction(1, 1000)
    )
    (source,) = list_sources([str(path)])
    found = scan(source, ScanConfig(limits=Limits(max_duration_s=10)))
    assert found.source["frames"] == 75
    assert found.source["lost_still_s"] == pytest.approx(3000, abs=0.1)


def test_a_video_that_goes_on_for_too_long_is_still_too_long(tmp_path: Path, pan):
    path = write_video(tmp_path / "a.ts", pan, options={"crf": "20", "bf": "0"})  # states no duration that is believed
    assert rejection(path, max_duration_s=2.0).kind == "too_long"


@pytest.mark.parametrize("start", [-(1 << 61), 1 << 62, (1 << 62) + 12345])
def test_timestamps_may_begin_anywhere(tmp_path: Path, pan, start: int):
    # Without macroblock tree, as it gives other bytes on every run (docs/decisions.md, 11).
    options = {"crf": "18", "preset": "veryfast", "mbtree": "0"}
    reference = inspect_pts(tmp_path, pan, [40 * i for i in range(75)], options=options)
    (clip,) = inspect_pts(tmp_path, pan, [start + 40 * i for i in range(75)], options=options).clips
    assert clip["motion"] == pytest.approx(reference.clips[0]["motion"], rel=0.01)
    assert (clip["frames"], len(clip["thumbnail_pts"])) == (75, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(5000, 1), (65000, 8)])
def test_thin_frames_cost_no_more_than_others(tmp_path: Path, width: int, height: int):
    """The picture for the optical flow has at most 16 times as many columns as rows of an ordinary one."""
    row = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mkv", [np.roll(row, i, 1) for i in range(50)], codec="ffv1")
    (source,) = list_sources([str(path)])
    with open(path, "rb") as file, Video(file) as video:
        frame = next(video.frames())
        assert FrameResizer().luma(frame.av_frame, video.info, short_side_px=64).size <= 16 * 64 * 64
    (clip,) = scan(source).clips
    assert clip["motion_error"] is None


def write_flat(path: Path, *parts: tuple[int, object]) -> Path:
    """(frames, grey level or pictures) one after the other."""
    frames: list[np.ndarray] = []
    for count, what in parts:
        frames += [np.full((180, 320, 3), what, np.uint8)] * count if isinstance(what, int) else list(what)[:count]  # type: ignore[call-overload]
    return write_video(path, frames, fps=25)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_blank_footage_is_called_blank_and_no_transition(tmp_path: Path, level: int):
    row = scan_file(write_flat(tmp_path / "blank.mp4", (250, level))).source
    assert (row["lost_blank_s"], row["lost_transition_s"], row["clips"]) == (pytest.approx(10.0), 0.0, 0)
    assert "10.0 s of 10.0 s are black or blank" in row["note"]


def test_blank_footage_between_shots_is_booked_apart_from_the_passages_beside_it(tmp_path: Path, pan):
    row = scan_file(write_flat(tmp_path / "both.mp4", (75, pan), (100, 0), (75, pan[::-1]))).source
    assert row["lost_blank_s"] == pytest.approx(4.0, abs=0.1)
    assert row["lost_transition_s"] <= 0.5
    assert row["duration_s"] == pytest.approx(row["clip_s"] + sum(row[k] for k in LOSSES))
    assert "blank" not in (row["note"] or "")


def test_making_room_for_thumbnails_changes_no_row_and_no_thumbnail(tmp_path: Path):
    """Five shots, and a spool that is crowded after every few thumbnails."""
    shots = [panning(height=180, pixels_per_frame=2, frames=120, seed=seed) for seed in range(5)]
    path = write_video(tmp_path / "a.mp4", [frame for shot in shots for frame in shot], fps=24)
    (source,) = list_sources([str(path)])
    plain = scan(source)
    with open(path, "rb") as file, ThumbnailSpool(1 << 30, in_memory_bytes=20_000) as spool, Video(file) as video:
        one_pass = OnePass(video.info, ScanConfig(), spool, remuxable=fits_mp4(video))
        sizes = []
        for frame in video.frames():
            one_pass.push(frame, video.packets)
            sizes.append(spool.size_bytes)
        crowded = one_pass.describe(source, video.packets)
    assert any(after < before for before, after in itertools.pairwise(sizes))
    assert crowded.thumbnails == plain.thumbnails
    assert crowded.clips == plain.clips


def test_a_source_with_more_frames_than_a_child_may_list_has_no_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_video(tmp_path / "a.mp4", panning(height=90, pixels_per_frame=2, frames=60))
    (source,) = list_sources([str(tmp_path / "a.mp4")])
    assert len(scan(source).source["frame_changes"]) == 60
    monkeypatch.setattr("curation.scan.one_pass.MOST_ITEMS", 59)
    assert [scan(source).source[name] for name in ("frame_changes", "frame_brightness")] == [None, None]


@settings(max_examples=40, deadline=None)
@given(
    base=st.builds(Fraction, st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)),
    start=st.integers(-(3 << 61), 3 << 61),
    steps=st.lists(st.integers(1, 1 << 50), max_size=30),
    duration=st.integers(-(1 << 62), (1 << 63) - 1),
)
def test_rows_of_any_timestamps_fit_the_tables(base: Fraction, start: int, steps: list[int], duration: int):
    pts = [at for at in itertools.accumulate(steps, initial=start) if at <= 3 << 61]
    info = VideoInfo(
        container="avi",
        stream_index=0,
        other_video_streams=0,
        codec="mpeg4",
        pixel_format="yuv420p",
        width=32,
        height=32,
        coded_width=32,
        coded_height=32,
        orientation=Orientation(),
        sample_aspect_ratio=Fraction(1),
        fps=None,
        duration_s=None,
        time_base=base,
        audio=None,
    )
    packets = PacketIndex(pts=list(pts), is_key=[True] * len(pts))
    source = Source(uri="/a.avi", size_bytes=1)
    with ThumbnailSpool(1 << 20) as spool:
        one_pass = OnePass(info, ScanConfig(), spool, remuxable=False)
        for index, at in enumerate(pts):
            av_frame = av.VideoFrame.from_ndarray(np.full((48, 32), 8 * index % 255, np.uint8), "yuv420p")
            av_frame.duration = min(duration, (1 << 63) - 1)
            one_pass.push(Frame(index, at, av_frame, info), packets)
        check_scan(one_pass.describe(source, packets), source)
