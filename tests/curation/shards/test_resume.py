"""Clips of rebuilt time lines are extracted from a keyframe near by, with the same result as from the start."""

from pathlib import Path
from typing import Any

import av
import pytest

from clipmill.errors import SourceError
from curation.inputs.sources import list_sources
from curation.scan.one_pass import ScanConfig, scan
from curation.shards.clip_row import ExtractedClip
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shots.spans import SpanConfig
from curation.video.decode import Video
from tests.media import panning, write_video
from tests.timed_inputs import INPUTS, TimedInput

REBUILT = (
    "avi_h264",
    "avi_mpeg4_packed",
    "matroska_in_order_of_decoding",
    "matroska_two_identical",
    "mpegts_joined",
    "mpegts_joined_with_a_later_clock",
    "mpeg_ps_joined",
)


def clips_of(given: TimedInput) -> list[dict[str, Any]]:
    (source,) = list_sources([str(given.path)])
    return scan(source, ScanConfig(spans=SpanConfig(min_s=0.4, max_s=0.8))).clips


def contents(given: TimedInput, clips: list[dict[str, Any]], kind: str = "clips") -> list[bytes]:
    files = extract_clips(str(given.path), clips, kind, ExtractionConfig())  # type: ignore[arg-type]
    assert all(isinstance(file, ExtractedClip) for file in files), files
    return [file.content for file in files if isinstance(file, ExtractedClip)]


@pytest.mark.parametrize("kind", ["clips", "images"])
@pytest.mark.parametrize("name", REBUILT)
def test_resuming_gives_what_decoding_from_the_start_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
):
    given = INPUTS[name](tmp_path)
    clips = clips_of(given)
    late = [clip for clip in clips if clip["resume"] is not None]
    assert len(late) >= len(clips) - 2 >= 1
    assert any(clip["resume"]["packet"] > 0 for clip in late)
    from_the_start = contents(given, [clip | {"resume": None} for clip in late], kind)
    monkeypatch.setattr(Video, "_timed", lambda *_: pytest.fail("decoded from the start"))
    assert contents(given, late, kind) == from_the_start


@pytest.mark.parametrize("kind", ["clips", "images"])
@pytest.mark.parametrize("change", [{"packet": 10**9}, {"packet": -1}, {"packet": 3}, {"stamps": []}, {"stamps": [5]}])
def test_a_place_that_does_not_fit_is_not_believed(tmp_path: Path, kind: str, change: dict[str, Any]):
    given = INPUTS["avi_h264"](tmp_path)
    clip = clips_of(given)[-1]
    (expected,) = contents(given, [clip], kind)
    assert contents(given, [clip | {"resume": clip["resume"] | change}], kind) == [expected]


@pytest.mark.parametrize("place", [0, 5, -1])
def test_another_frame_than_in_the_scan_is_seen(tmp_path: Path, place: int):
    given = INPUTS["avi_h264"](tmp_path)
    clip = clips_of(given)[-1]
    stamps = list(clip["resume"]["stamps"])
    stamps[place] += 1
    wrong = clip | {"resume": clip["resume"] | {"stamps": stamps}}
    assert contents(given, [wrong]) == contents(given, [clip])


def test_a_clip_that_is_not_there_is_an_error_either_way(tmp_path: Path):
    given = INPUTS["avi_h264"](tmp_path)
    clip = clips_of(given)[-1]
    shifted = clip | {"start_pts": clip["start_pts"] + 1, "resume": clip["resume"] | {"packet": 0, "stamps": [7] * 9}}
    (result,) = extract_clips(str(given.path), [shifted], "clips", ExtractionConfig())
    assert isinstance(result, SourceError)
    assert "the file differs from the scan" in result.message


def test_recordings_with_the_same_timestamps_are_not_mixed_up(tmp_path: Path):
    """As many cameras write them: each starts its clock anew."""
    parts = [
        write_video(tmp_path / f"{seed}.ts", panning(height=96, pixels_per_frame=2, frames=60, seed=seed)).read_bytes()
        for seed in (1, 2)
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    source = next(iter(list_sources([str(path)])))
    clips = scan(source, ScanConfig(spans=SpanConfig(min_s=0.5, max_s=4.0))).clips
    assert [clip["start_frame"] for clip in clips] == [0, 60]
    assert clips[1]["resume"]["stamps"][0] == source_pts(tmp_path / "1.ts")
    resumed, whole = (
        extract_clips(str(path), [clip], "clips", ExtractionConfig())
        for clip in (clips[1], clips[1] | {"resume": None})
    )
    assert isinstance(resumed[0], ExtractedClip)
    assert isinstance(whole[0], ExtractedClip)
    assert resumed[0].content == whole[0].content


def source_pts(path: Path) -> int:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).pts or 0
