"""A file that is read without coming to a frame ends there; what lies before stays readable."""

import io
import os
from pathlib import Path

import pytest

from curation.inputs.sources import list_sources
from curation.scan.one_pass import ScanConfig, scan
from curation.video.decode import Limits
from curation.video.stall import Watched
from tests.media import panning, write_video


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "mpeg4"), ("a.flv", "libx264"), ("a.mkv", "libx264"), ("a.mxf", "mpeg2video")]
)
def test_a_sparse_file_ends_where_its_frames_end(tmp_path: Path, name: str, codec: str):
    frames = panning(height=144, pixels_per_frame=1, frames=60)
    options = {"qmin": "1"} if codec != "libx264" else {"crf": "20"}
    path = write_video(tmp_path / name, frames, fps=25, codec=codec, options=options)
    os.truncate(path, 60 << 30)
    (source,) = list_sources([str(path)])
    row = scan(source, ScanConfig(limits=Limits(stall_bytes=4 << 20))).source
    assert (row["frames"], row["status"]) == (60, "ok")
    assert "limits.stall_bytes" in row["note"]


def test_frames_renew_what_may_be_read():
    file = Watched(io.BytesIO(bytes(1 << 20)), stall_bytes=100_000)
    for _ in range(16):
        assert len(file.read(1 << 16)) == 1 << 16
        file.came_to_a_frame()
    assert file.reason is None


def test_a_demuxer_that_looks_everywhere_finds_nothing_in_the_end():
    file = Watched(io.BytesIO(bytes(1 << 20)), stall_bytes=100_000)
    read = 0
    for place in (0, 1 << 19, 0, 1 << 19) * 20:
        file.seek(place)
        read += sum(len(file.read(1 << 14)) for _ in range(16))
    assert file.reason
    assert read <= 5 * (100_000 + (1 << 14))


def test_packets_without_a_frame_are_counted():
    file = Watched(io.BytesIO(), stall_bytes=1 << 20)
    for _ in range(100_000):
        assert file.came_to_a_packet()
    assert not file.came_to_a_packet()
    file.came_to_a_frame()
    assert file.came_to_a_packet()
