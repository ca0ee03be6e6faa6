"""Of several video streams the footage is read, and the row says which it was."""

from pathlib import Path

import pytest

from clipmill.errors import SourceError
from curation.inputs.sources import list_sources
from curation.scan.one_pass import ScanConfig, scan
from curation.shards.clip_row import ExtractedClip
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shots.spans import SpanConfig
from curation.video.decode import Video
from tests.ffmpeg import ffmpeg

X264 = ("-c:v", "libx264", "-preset", "veryfast", "-g", "12", "-pix_fmt", "yuv420p")
MOVIE, STILL, SLIDES = (64, 48), (320, 240), (640, 480)


def inputs(folder: Path) -> dict[str, Path]:
    movie, still, slides = (folder / f"{name}.mp4" for name in ("movie", "still", "slides"))
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=24:d=3", *X264, movie)
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=320x240:r=1:d=1", *X264, still)
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=640x480:r=1:d=3", *X264, slides)
    return {"movie": movie, "still": still, "slides": slides}


def joined(path: Path, tracks: list[tuple[Path, str]], *options: str) -> Path:
    """One file of the first video streams of others, each with a disposition."""
    arguments: list[str | Path] = []
    for track, _ in tracks:
        arguments += ["-i", track]
    for i, (_, disposition) in enumerate(tracks):
        arguments += ["-map", f"{i}:v", f"-disposition:v:{i}", disposition]
    ffmpeg(*arguments, "-c", "copy", *options, path)
    return path


def chosen(path: Path) -> tuple[int, int, tuple[int, int]]:
    with path.open("rb") as file, Video(file) as video:
        info = video.info
        return info.stream_index, info.other_video_streams, (info.width, info.height)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "ts", "fragmented"])
@pytest.mark.parametrize("other", ["still", "slides"])
@pytest.mark.parametrize("first", [True, False])
def test_the_moving_stream_is_the_footage(tmp_path: Path, container: str, other: str, first: bool) -> None:
    made = inputs(tmp_path)
    tracks = [(made[other], "default"), (made["movie"], "0")]
    options = ("-movflags", "frag_keyframe+empty_moov") if container == "fragmented" else ()
    suffix = "mp4" if container == "fragmented" else container
    path = joined(tmp_path / f"a.{suffix}", tracks if first else tracks[::-1], *options)
    assert chosen(path) == (int(first), 1, MOVIE)


def test_a_clip_is_extracted_from_the_stream_that_was_scanned(tmp_path: Path) -> None:
    made = inputs(tmp_path)
    path = joined(tmp_path / "a.mp4", [(made["slides"], "default"), (made["movie"], "default")])
    for extraction in ("remux", "transcode"):
        source = next(iter(list_sources([str(path)])))
        found = scan(source, ScanConfig(spans=SpanConfig(min_s=1.0, max_s=4.0, extraction=extraction)))
        assert (found.source["stream_index"], found.source["other_video_streams"]) == (1, 1)
        (clip,) = extract_clips(str(path), found.clips, "clips", ExtractionConfig())
        assert isinstance(clip, ExtractedClip)
        assert (clip.shape["width"], clip.shape["height"]) == MOVIE


def test_of_moving_streams_the_default_and_then_the_largest(tmp_path: Path) -> None:
    movie = inputs(tmp_path)["movie"]
    large = tmp_path / "large.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x120:r=24:d=3", *X264, large)
    assert chosen(joined(tmp_path / "a.mkv", [(large, "0"), (movie, "default")])) == (1, 1, MOVIE)
    assert chosen(joined(tmp_path / "b.mkv", [(movie, "0"), (large, "0")])) == (1, 1, (160, 120))
    assert chosen(joined(tmp_path / "c.mkv", [(movie, "0"), (large, "visual_impaired")])) == (0, 1, MOVIE)


def test_a_cover_is_no_video_and_no_choice(tmp_path: Path) -> None:
    movie, cover = inputs(tmp_path)["movie"], tmp_path / "cover.png"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=320x240", "-frames:v", "1", cover)
    assert chosen(joined(tmp_path / "a.mp4", [(cover, "attached_pic"), (movie, "0")])) == (0, 1, MOVIE)
    song = tmp_path / "song.m4a"
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-i", cover, "-c:v", "copy", "-disposition:v", "attached_pic", song)
    with pytest.raises(SourceError, match="no_video_stream"):
        chosen(song)


def test_an_empty_or_broken_stream_leaves_the_other(tmp_path: Path) -> None:
    made = inputs(tmp_path)
    other = tmp_path / "other.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x120:r=24:d=3", "-c:v", "libx265", other)
    tracks = [(other, "default"), (made["movie"], "0")]
    empty = joined(tmp_path / "empty.mkv", tracks, "-c:v:0", "libx264", "-filter:v:0", "select=0")
    assert chosen(empty) == (1, 1, MOVIE)
    unknown = joined(tmp_path / "unknown.mp4", [(other, "default"), (made["movie"], "0")])
    unknown.write_bytes(unknown.read_bytes().replace(b"hev1", b"zzzz"))
    assert chosen(unknown) == (1, 1, MOVIE)
