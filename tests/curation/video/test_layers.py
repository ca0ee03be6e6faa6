"""What only some players can show: scrambled transport streams, and the second view of a spatial video."""

import re
from pathlib import Path

import numpy as np
import pytest

from clipmill.errors import SourceError
from curation.inputs.sources import list_sources
from curation.scan.one_pass import Scan, ScanConfig, scan
from curation.shards.extract import ExtractedClip, ExtractionConfig, extract_clips
from curation.shots.spans import SpanConfig
from tests.ffmpeg import ffmpeg, first_picture

TEST_PICTURE = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=4")
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:keyint=25:bframes=0")
VIDEO_PIDS = (0x100, 0x1011)
_NAL_TYPES_OF_PICTURES = range(32)
_PARAMETER_SETS = (32, 33, 34)


def scanned(path: Path, extraction: str = "auto") -> Scan:
    (source,) = list_sources([str(path)])
    return scan(source, ScanConfig(spans=SpanConfig(min_s=0.5, extraction=extraction)))  # type: ignore[arg-type]


def scrambled(path: Path, clear: Path, share: float, packet_bytes: int) -> Path:
    """The packets of the video from there on are marked as scrambled, and are noise."""
    rng, content, prefix = np.random.default_rng(0), clear.read_bytes(), packet_bytes - 188
    packets = np.frombuffer(content, np.uint8).reshape(-1, packet_bytes).copy()
    for packet in packets[int(share * len(packets)) :, prefix:]:
        pid, has_payload = (int(packet[1]) & 0x1F) << 8 | int(packet[2]), packet[3] & 0x10
        if pid not in VIDEO_PIDS or not has_payload:
            continue
        start = 4 + (1 + int(packet[4]) if packet[3] & 0x20 else 0)
        packet[3] |= 0x80
        packet[start:] = rng.integers(0, 256, 188 - start)
    path.write_bytes(packets.tobytes())
    return path


@pytest.mark.parametrize(("suffix", "packet_bytes"), [("ts", 188), ("m2ts", 192)])
def test_a_scrambled_stream_says_so(tmp_path: Path, suffix: str, packet_bytes: int) -> None:
    clear = tmp_path / f"clear.{suffix}"
    ffmpeg(*TEST_PICTURE, "-c:v", "libx264", "-g", "25", "-pix_fmt", "yuv420p", "-f", "mpegts",
           *(("-mpegts_m2ts_mode", "1") if packet_bytes == 192 else ()), clear)  # fmt: skip
    assert scanned(clear).source["note"] is None
    with pytest.raises(SourceError, match="encrypted: the transport stream is scrambled"):
        scanned(scrambled(tmp_path / f"a.{suffix}", clear, 0, packet_bytes))
    found = scanned(scrambled(tmp_path / f"b.{suffix}", clear, 0.5, packet_bytes))
    assert 25 <= found.source["frames"] < 75
    assert "the stream is scrambled from there on" in found.source["note"]


def units(stream: Path) -> list[bytes]:
    """Of a raw HEVC stream, without start codes."""
    return re.split(rb"\x00?\x00\x00\x01", stream.read_bytes())[1:]


def two_layers(path: Path, left: Path, right: Path) -> Path:
    """The pictures of the right view follow those of the left one as layer 1, as in MV-HEVC."""
    pictures = [unit for unit in units(right) if unit[0] >> 1 & 63 in _NAL_TYPES_OF_PICTURES]
    content = bytearray()
    for unit in units(left):
        content += b"\x00\x00\x00\x01" + unit
        if unit[0] >> 1 & 63 in _NAL_TYPES_OF_PICTURES:
            view = pictures.pop(0)
            content += b"\x00\x00\x00\x01" + bytes([view[0], 1 << 3 | view[1] & 7]) + view[2:]
    assert not pictures
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", ["hevc", "mp4"])
def test_of_two_layers_the_base_view_is_read(tmp_path: Path, suffix: str) -> None:
    left, right = tmp_path / "left.hevc", tmp_path / "right.hevc"
    ffmpeg(*TEST_PICTURE, *X265, "-pix_fmt", "yuv420p", left)
    ffmpeg(*TEST_PICTURE, "-vf", "negate", *X265, "-pix_fmt", "yuv420p", right)
    path = two_layers(tmp_path / "both.hevc", left, right)
    if suffix == "mp4":
        ffmpeg("-r", "25", "-i", path, "-c", "copy", "-tag:v", "hvc1", tmp_path / "both.mp4")
        path = tmp_path / "both.mp4"
    expected = first_picture(left).astype(float)
    for extraction in ("transcode", "remux") if suffix == "mp4" else ("transcode",):
        found = scanned(path, extraction)
        assert found.source["frames"] == 100
        for i, file in enumerate(extract_clips(str(path), found.clips, "clips", ExtractionConfig())):
            assert isinstance(file, ExtractedClip), file
            assert found.clips[i]["extraction"] == extraction
            if found.clips[i]["start_frame"] == 0:
                mp4 = tmp_path / f"{extraction}.mp4"
                mp4.write_bytes(file.content)
                assert np.abs(first_picture(mp4) - expected).mean() < 3
