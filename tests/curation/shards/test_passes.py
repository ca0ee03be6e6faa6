"""Clips of one source: which share a decode, what is tried again, what is read for them, and how one fails alone."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest

from clipmill.errors import SourceError
from curation.inputs.stats import stat_source
from curation.shards import extract
from curation.shards.clip_row import ExtractedClip
from curation.shards.extract import ExtractionConfig, decode_failure, decode_passes, extract_clips
from curation.video.decode import Limits
from tests.curation.shards.rows import clip_row
from tests.media import panning, write_video

SOURCE = "a" * 32


class SeekingVideo:
    """A video whose keyframes lie every 100 ticks; seeking behind `broken_pts` fails."""

    def __init__(self, broken_pts: float = float("inf")) -> None:
        self.broken_pts = broken_pts

    def demux(self, start_pts: int) -> Iterator[SimpleNamespace]:
        if start_pts > self.broken_pts:
            raise av.FFmpegError(5, "Input/output error")
        yield SimpleNamespace(pts=start_pts - start_pts % 100)


@pytest.mark.parametrize(
    ("video", "starts_per_pass"),
    [(SeekingVideo(), [[10, 60], [310]]), (SeekingVideo(broken_pts=50), [[10], [60], [310]])],
)
def test_clips_share_a_decode_where_no_keyframe_lies_between_them(video: Any, starts_per_pass: list[list[int]]):
    row = {"timestamps": "container", "resume": None, "interlaced": "progressive"}
    clips = [{"start_pts": start, "end_pts": start + 40, **row} for start in (310, 10, 60)]
    assert [[clip["start_pts"] for clip in group] for group in decode_passes(video, clips)] == starts_per_pass


def clip_at(start_pts: int, end_pts: int, **changes: Any) -> dict[str, Any]:
    bounds = {"start_pts": start_pts, "end_pts": end_pts, "frames": end_pts - start_pts}
    return clip_row(SOURCE, 0, **{"clip_id": f"{start_pts}-{end_pts}", "extraction": "transcode", **bounds, **changes})


def groups(clips: list[dict[str, Any]], video: Any = None) -> list[list[str]]:
    return [[clip["clip_id"] for clip in group] for group in decode_passes(video or SeekingVideo(), clips)]


def test_a_keyframe_at_the_end_of_a_clip_starts_another_decode() -> None:
    assert groups([clip_at(10, 100), clip_at(120, 140)]) == [["10-100"], ["120-140"]]
    assert groups([clip_at(10, 101), clip_at(120, 140)]) == [["10-101", "120-140"]]
    assert groups([clip_at(10, 60), clip_at(60, 80)]) == [["10-60", "60-80"]]
    assert groups([clip_at(10, 60), clip_at(59, 80)]) == [["10-60"], ["59-80"]]


def test_a_decode_that_finds_no_packet_is_not_shared() -> None:
    nothing = SimpleNamespace(demux=lambda _: iter(()))
    assert groups([clip_at(10, 60), clip_at(60, 80)], nothing) == [["10-60"], ["60-80"]]


def test_rebuilt_timestamps_share_one_decode_but_for_clips_that_can_resume() -> None:
    """It begins with the file, so keyframes do not matter."""
    rebuilt = {"timestamps": "rebuilt"}
    clips = [
        clip_at(10, 60, **rebuilt),
        clip_at(210, 260, **rebuilt, resume="a"),
        clip_at(310, 360, **rebuilt, resume="b"),
        clip_at(410, 460, **rebuilt),
    ]
    assert groups(clips) == [["210-260"], ["310-360"], ["10-60", "410-460"]]


def test_clips_that_are_deinterlaced_differently_never_share_a_decode() -> None:
    clips = [
        clip_at(10, 20),
        clip_at(20, 30, interlaced="tff"),
        clip_at(30, 40, interlaced="tff"),
        clip_at(40, 50),
        clip_at(50, 60, interlaced="tff", resume="a"),
    ]
    assert groups(clips) == [["10-20"], ["20-30", "30-40"], ["40-50"], ["50-60"]]


class Attempts:
    """Stands for the decodes of a source: each attempt at a clip ends as its list says, and is noted."""

    def __init__(self, outcomes: dict[str, list[Any]]) -> None:
        self.outcomes = outcomes
        self.seen: list[tuple[tuple[str, int], bool]] = []
        """(clip_id, factor), and whether it was to be resumed."""

    def one_pass(self, _video: Any, clips: list[Any], crf: dict[str, int], *_: Any) -> Iterator[tuple[Any, Any, Any]]:
        for clip in clips:
            outcome = self.outcomes[clip["clip_id"]].pop(0)
            self.seen.append(((clip["clip_id"], crf[clip["clip_id"]]), clip["resume"] is not None))
            failure = outcome if isinstance(outcome, SourceError) else None
            result = f"{clip['clip_id']} at {outcome} dB"
            yield clip, SimpleNamespace(psnr_db=outcome if failure is None else 0.0, result=lambda r=result: r), failure


def transcoded(monkeypatch: pytest.MonkeyPatch, attempts: Attempts, *clips: dict[str, Any], **config: Any) -> Any:
    monkeypatch.setattr(extract, "_transcode_in_one_pass", attempts.one_pass)
    return extract._transcode(SeekingVideo(), clips, ExtractionConfig(**config), None, {})  # type: ignore[arg-type]


def test_a_clip_below_the_goal_is_transcoded_again_with_the_factor_that_should_reach_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0.8 dB per step of the factor, down to 1, whose result counts whatever it is."""
    attempts = Attempts({"0-24": [39.9, 40.0], "24-48": [45.0], "48-72": [33.0, 39.0, 41.0], "72-96": [20.0, 30.0]})
    clips = [clip_at(start, start + 24) for start in range(0, 96, 24)]
    results = transcoded(monkeypatch, attempts, *clips)
    assert results == {
        "0-24": "0-24 at 40.0 dB",
        "24-48": "24-48 at 45.0 dB",
        "48-72": "48-72 at 41.0 dB",
        "72-96": "72-96 at 30.0 dB",
    }
    tried: dict[str, list[int]] = {}
    for (clip_id, crf), _ in attempts.seen:
        tried.setdefault(clip_id, []).append(crf)
    assert tried == {"0-24": [18, 17], "24-48": [18], "48-72": [18, 9, 7], "72-96": [18, 1]}


def test_the_lowest_factor_is_tried_and_then_its_result_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts({"0-24": [39.0, 39.0]})
    assert transcoded(monkeypatch, attempts, clip_at(0, 24), crf=2) == {"0-24": "0-24 at 39.0 dB"}
    assert [crf for (_, crf), _ in attempts.seen] == [2, 1]


def test_a_clip_that_cannot_be_resumed_is_decoded_from_the_start_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = SourceError("decode_error", "no such packet")
    attempts = Attempts({"0-24": [failure, 45.0], "24-48": [46.0], "48-72": [failure]})
    clips = [
        clip_at(0, 24, timestamps="rebuilt", resume="a"),
        clip_at(24, 48, timestamps="rebuilt", resume="b"),
        clip_at(48, 72, timestamps="rebuilt"),
    ]
    results = transcoded(monkeypatch, attempts, *clips)
    assert results == {"0-24": "0-24 at 45.0 dB", "24-48": "24-48 at 46.0 dB", "48-72": failure}
    resumed = [(clip_id, has_resume) for (clip_id, _), has_resume in attempts.seen]
    assert resumed == [("0-24", True), ("24-48", True), ("48-72", False), ("0-24", False)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two seconds with a keyframe at the start only."""
    options = {"preset": "ultrafast", "crf": "30", "g": "100", "sc_threshold": "0", "bf": "0"}
    return write_video(tmp_path / "a.mp4", panning(height=48, pixels_per_frame=1, frames=48), options=options)


def rows(path: Path, *bounds: tuple[int, int], extraction: str = "transcode") -> list[dict[str, Any]]:
    """Clips of it, by their first frame and the one after the last; its clock has 12,288 ticks a second."""
    source_id = stat_source(str(path)).source_id
    return [
        clip_at(512 * start, 512 * end, frames=end - start, time_base_den=12288, source_id=source_id)
        | {"clip_id": f"{start}-{end}", "extraction": extraction}
        for start, end in bounds
    ]


def test_frames_between_two_clips_of_one_decode_belong_to_neither(path: Path) -> None:
    results = extract_clips(str(path), rows(path, (4, 20), (30, 44)), "clips", ExtractionConfig())
    assert all(isinstance(each, ExtractedClip) for each in results), results


def test_a_source_beyond_the_limits_is_not_read(path: Path) -> None:
    config = ExtractionConfig(limits=Limits(max_pixels=1000))
    (error,) = extract_clips(str(path), rows(path, (0, 12)), "clips", config)
    assert isinstance(error, SourceError)
    assert error.kind == "too_large"


def test_what_may_be_copied_of_a_source_is_limited(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    opening = extract.open_source

    def opened(uri: str, **options: Any) -> Any:
        asked.append(options)
        return opening(uri, **options)

    monkeypatch.setattr(extract, "open_source", opened)
    extract_clips(str(path), rows(path, (0, 12)), "clips", ExtractionConfig(limits=Limits(spool_bytes=9 << 20)))
    assert asked == [{"max_copy_bytes": 9 << 20}]


@pytest.mark.parametrize(
    ("kind", "audio", "reads"), [("clips", "keep", True), ("clips", "drop", False), ("images", "keep", False)]
)
def test_sound_is_read_for_clips_that_keep_it(
    kind: Any, audio: Any, reads: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(extract, "read_audio", lambda file, clips: asked.append((file.tell(), clips)) or {})
    clips = rows(path, (0, 12))
    clips[0]["thumbnail_pts"] = [0, 512, 1024]
    extract_clips(str(path), clips, kind, ExtractionConfig(audio=audio))
    assert asked == ([(0, clips)] if reads else [])


def test_an_error_of_ffmpeg_costs_its_clip_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copying = extract.remux_clip

    def failing(video: Any, clip: Any, audio: Any) -> Any:
        if clip["clip_id"] == "0-12":
            raise av.FFmpegError(5, "Input/output error")
        return copying(video, clip, audio)

    monkeypatch.setattr(extract, "remux_clip", failing)
    bad, good = extract_clips(str(path), rows(path, (0, 12), (0, 48), extraction="remux"), "clips", ExtractionConfig())
    assert isinstance(bad, SourceError)
    assert str(bad) == "decode_error: FFmpeg failed: Input/output error"
    assert isinstance(good, ExtractedClip)


def test_an_error_of_ffmpeg_while_encoding_costs_its_clip_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushing = extract.Encoder.push

    def failing(encoder: Any, frame: Any) -> None:
        if frame.pts == 512 * 5:
            raise av.FFmpegError(22, "Invalid argument")
        pushing(encoder, frame)

    monkeypatch.setattr(extract.Encoder, "push", failing)
    bad, good = extract_clips(str(path), rows(path, (0, 12), (12, 24)), "clips", ExtractionConfig())
    assert isinstance(bad, SourceError)
    assert str(bad) == "decode_error: FFmpeg failed: Invalid argument"
    assert isinstance(good, ExtractedClip)


def test_a_lack_of_memory_is_no_verdict_on_a_clip() -> None:
    error = av.error.MemoryError(12, "Cannot allocate memory")
    with pytest.raises(MemoryError) as raised:
        decode_failure(error)
    assert raised.value is error
    unnamed = decode_failure(av.FFmpegError(1234567, ""))
    assert (unnamed.kind, str(unnamed).startswith("decode_error: FFmpeg failed: ")) == ("decode_error", True)
