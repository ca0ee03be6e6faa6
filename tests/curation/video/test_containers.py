"""Containers and streams by what is in them, not by their names: animations, raw streams, stills, damage."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from clipmill.errors import SourceError
from curation.inputs.sources import list_sources
from curation.scan.one_pass import ScanConfig, scan
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shots.spans import SpanConfig
from curation.video.decode import Video
from tests.ffmpeg import ffmpeg
from tests.media import panning, write_video

CONFIG = ScanConfig(spans=SpanConfig(min_s=0.5))
FRAMES = 40
FORMATS = {
    "a.gif": (),
    "a.apng": ("-f", "apng"),
    "a.png": ("-f", "apng"),
    "a.h264": ("-c:v", "libx264", "-bf", "2", "-pix_fmt", "yuv420p"),
    "a.hevc": ("-c:v", "libx265", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p"),
    "a.ivf": ("-c:v", "libvpx"),
    "a.y4m": ("-pix_fmt", "yuv420p"),
    "a.m2v": ("-c:v", "mpeg2video", "-q:v", "2"),
    "a.nut": ("-c:v", "libx264", "-pix_fmt", "yuv420p"),
    "a.rm": ("-c:v", "rv20", "-q:v", "2"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same footage, 25 fps, in every format, and as MP4."""
    folder = tmp_path_factory.mktemp("formats")
    frames = panning(height=72, pixels_per_frame=1, frames=FRAMES)
    write_video(folder / "whole.mp4", frames, fps=25)
    for name, options in FORMATS.items():
        ffmpeg("-i", folder / "whole.mp4", *options, folder / name)
    return folder


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suffix", ["own", ".mp4", ""])
def test_a_format_is_read_whatever_its_name(folder: Path, tmp_path: Path, name: str, suffix: str):
    path = tmp_path / (name if suffix == "own" else f"named{suffix}")
    path.write_bytes((folder / name).read_bytes())
    (source,) = list_sources([str(path)])
    scanned = scan(source, CONFIG)
    assert scanned.source["frames"] == FRAMES
    assert scanned.source["fps"] == pytest.approx(25, rel=0.01)
    (clip,) = scanned.clips
    (extracted,) = extract_clips(source.uri, scanned.clips, "clips", ExtractionConfig())
    assert not isinstance(extracted, SourceError), extracted
    with av.open(io.BytesIO(extracted.content)) as file:
        written = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(str(folder / "whole.mp4")) as file:
        expected = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(written) == clip["frames"] == FRAMES
    for i in (0, FRAMES // 2, FRAMES - 1):  # the palette of a GIF and old codecs lose a little
        assert np.abs(written[i].astype(int) - expected[i]).mean() < 12


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".jpg"])
def test_a_still_is_no_video(folder: Path, tmp_path: Path, suffix: str):
    ffmpeg("-i", folder / "whole.mp4", "-frames:v", "1", tmp_path / f"still{suffix}")
    with (
        pytest.raises(SourceError, match="a still picture") as refused,
        open(tmp_path / f"still{suffix}", "rb") as file,
    ):
        Video(file)
    assert refused.value.kind == "not_video"


def test_an_animated_webp_is_named(folder: Path, tmp_path: Path):
    ffmpeg("-i", folder / "whole.mp4", "-c:v", "libwebp_anim", tmp_path / "a.webp")
    (source,) = list_sources([str(tmp_path)])
    with pytest.raises(SourceError, match=r"animated WebP.*convert it to MP4") as refused:
        scan(source)
    assert refused.value.kind == "unsupported_container"


def test_a_stream_that_is_cut_off_or_garbage(folder: Path, tmp_path: Path):
    whole = (folder / "a.h264").read_bytes()
    (tmp_path / "cut.h264").write_bytes(whole[: len(whole) // 2])
    assert 5 < scan(list_sources([str(tmp_path / "cut.h264")]).sources[0], CONFIG).source["frames"] < FRAMES
    (tmp_path / "garbage.h264").write_bytes(whole[:8] + bytes(range(256)) * 40)
    with pytest.raises(SourceError) as refused:
        scan(list_sources([str(tmp_path / "garbage.h264")]).sources[0], CONFIG)
    assert refused.value.kind == "decode_error"


CODECS = {
    ".ogv": ("-c:v", "libtheora", "-q:v", "8", "-g", "50"),
    ".webm": ("-c:v", "libvpx"),
    ".mkv": ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"),
    ".mxf": ("-c:v", "mpeg2video", "-q:v", "2"),
}


@pytest.mark.parametrize("suffix", CODECS)
def test_files_joined_end_to_end_are_read_to_the_end(folder: Path, tmp_path: Path, suffix: str):
    for name, turned in (("a", "null"), ("b", "negate")):
        ffmpeg("-i", folder / "whole.mp4", "-vf", turned, *CODECS[suffix], tmp_path / f"{name}{suffix}")
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes((tmp_path / f"a{suffix}").read_bytes() + (tmp_path / f"b{suffix}").read_bytes())
    (source,) = list_sources([str(joined)])
    scanned = scan(source, CONFIG)
    assert (scanned.source["frames"], scanned.source["lost_damage_s"]) == (2 * FRAMES, 0)
    assert [clip["frames"] for clip in scanned.clips] == [FRAMES, FRAMES]
    for extracted in extract_clips(source.uri, scanned.clips, "clips", ExtractionConfig()):
        assert not isinstance(extracted, SourceError), extracted
        with av.open(io.BytesIO(extracted.content)) as file:
            assert sum(1 for _ in file.decode(video=0)) == FRAMES


@pytest.mark.parametrize("suffix", [".mp4", ".flv", ".wmv", ".ivf"])
def test_a_file_joined_to_the_end_that_is_not_read_is_noted(folder: Path, tmp_path: Path, suffix: str):
    codec = {".wmv": ("-c:v", "wmv2"), ".ivf": ("-c:v", "libvpx")}.get(suffix, ("-c:v", "libx264"))
    sound = (
        () if suffix == ".ivf" else ("-f", "lavfi", "-i", "sine=d=3", "-c:a", "aac" if suffix != ".wmv" else "wmav2")
    )
    ffmpeg("-i", folder / "whole.mp4", *sound, *codec, "-pix_fmt", "yuv420p", tmp_path / f"a{suffix}")
    content = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"joined{suffix}").write_bytes(content + content)
    notes = []
    for name in ("a", "joined"):
        (source,) = list_sources([str(tmp_path / f"{name}{suffix}")])
        row = scan(source, CONFIG).source
        assert row["frames"] == FRAMES
        notes.append(row["note"] or "")
    assert "joined" not in notes[0]
    assert "another file is joined to its end" in notes[1]


@pytest.mark.parametrize("codec", ["libx265", "mpeg2video"])
def test_a_transport_stream_that_goes_on_in_another_codec_is_whole_up_to_there(
    folder: Path, tmp_path: Path, codec: str
):
    ffmpeg("-i", folder / "whole.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p", tmp_path / "a.ts")
    ffmpeg("-i", folder / "whole.mp4", "-c:v", codec, "-pix_fmt", "yuv420p", tmp_path / "b.ts")
    (tmp_path / "joined.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    (source,) = list_sources([str(tmp_path / "joined.ts")])
    scanned = scan(source, CONFIG)
    assert FRAMES - 2 <= scanned.source["frames"] <= FRAMES  # the demuxer cannot part the last one from what follows
    assert scanned.source["lost_damage_s"] == 0
    assert f"another codec, {'hevc' if codec == 'libx265' else codec}" in scanned.source["note"]
    (extracted,) = extract_clips(source.uri, scanned.clips, "clips", ExtractionConfig())
    assert not isinstance(extracted, SourceError), extracted
    (alone,) = list_sources([str(tmp_path / "a.ts")])
    assert scan(alone, CONFIG).source["note"] is None


@pytest.mark.parametrize("first_box", [b"styp", b"sidx", b"moof"])
def test_a_media_segment_without_its_header_is_named(folder: Path, tmp_path: Path, first_box: bytes):
    flags = ("-movflags", "cmaf+dash+frag_keyframe+empty_moov+global_sidx")
    ffmpeg("-i", folder / "whole.mp4", "-c:v", "libx264", "-g", "10", *flags, tmp_path / "whole.mp4")
    whole = (tmp_path / "whole.mp4").read_bytes()
    segment = whole[whole.index(b"moof") - 4 :]
    box = b"" if first_box == b"moof" else (16).to_bytes(4, "big") + first_box + bytes(8)
    (tmp_path / "segment.mp4").write_bytes(box + segment)
    (source,) = list_sources([str(tmp_path / "segment.mp4")])
    with pytest.raises(SourceError, match="the initialization segment first") as refused:
        scan(source)
    assert refused.value.kind == "decode_error"
    header = whole[: whole.index(b"moof") - 4]
    (tmp_path / "joined.mp4").write_bytes(header + segment)
    assert scan(list_sources([str(tmp_path / "joined.mp4")]).sources[0], CONFIG).source["frames"] == FRAMES
