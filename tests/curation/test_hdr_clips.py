"""An HDR video: the row says so; thumbnail, transcode and the trainer's frames show one SDR picture."""

import io
import random
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from clipmill.errors import SourceError
from curation.inputs.sources import list_sources
from curation.scan.one_pass import ScanConfig, scan
from curation.shards.clip_row import ExtractedClip
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shots.spans import SpanConfig
from tests.hdr_video import TRANSFERS, graphics_signal, write_hdr
from tests.media import panning, texture, write_video
from training.frames import sample_video
from training.sample_error import SampleError


def graphics(frames: int = 48) -> list[np.ndarray]:
    """BGR frames of a coloured texture that moves."""
    return [
        cv2.merge([channel[..., 0] for channel in channels])
        for channels in zip(
            *(panning(height=96, pixels_per_frame=1, frames=frames, seed=seed) for seed in range(3)), strict=True
        )
    ]


def scanned(path: Path) -> Any:
    config = ScanConfig(spans=SpanConfig(min_s=0.5, max_s=2.0))
    return scan(next(iter(list_sources([str(path)]))), config)


def extracted(path: Path, clip: dict[str, Any], **changes: Any) -> ExtractedClip:
    (file,) = extract_clips(str(path), [clip | changes], "clips", ExtractionConfig())
    assert isinstance(file, ExtractedClip), file
    return file


def trained(content: bytes, **options: Any) -> np.ndarray:
    """(2, H, W, 3) RGB."""
    sampled = sample_video(
        content,
        lengths=(2,),
        rates=(2.0,),
        size_for=lambda h, w: (h, w),
        crop="center",
        rng=random.Random(0),
        **options,
    )
    return sampled.frames_TCHW.transpose(0, 2, 3, 1).astype(int)


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_one_picture_everywhere(tmp_path: Path, transfer: str) -> None:
    pictures = graphics()
    path = write_hdr(tmp_path / "a.mp4", [graphics_signal(bgr, transfer) for bgr in pictures], transfer)
    result = scanned(path)
    row = result.source
    assert {key: row[key] for key in ("transfer", "primaries", "matrix", "range", "hdr", "bit_depth")} == {
        "transfer": transfer, "primaries": "bt2020", "matrix": "bt2020nc", "range": "tv", "hdr": True, "bit_depth": 10,
    }  # fmt: skip
    assert 50 < row["bright_nits"] < 105
    clip = result.clips[0]
    assert clip["extraction"] == "remux"
    thumbnail = cv2.imdecode(np.frombuffer(result.thumbnails[0][0], np.uint8), cv2.IMREAD_COLOR).astype(int)
    assert np.abs(thumbnail - pictures[0]).mean() < 6

    transcode = extracted(path, clip, extraction="transcode").content
    with av.open(io.BytesIO(transcode)) as container:
        frame = next(container.decode(video=0))
        tags = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
        assert (frame.format.name, *map(int, tags)) == ("yuv420p", 1, 1, 1, 1)
    remux = extracted(path, clip).content
    assert np.abs(trained(transcode) - trained(remux)).mean() < 3
    assert min(np.abs(trained(remux)[0] - bgr[..., ::-1]).mean() for bgr in pictures) < 6


def test_a_dark_clip_keeps_the_white_of_its_source(tmp_path: Path) -> None:
    """In the shard a remuxed clip is alone: its source's bright level goes with it."""
    dark, bright = ([graphics_signal(bgr, "smpte2084", white) for bgr in graphics(24)] for white in (60.0, 1000.0))
    path = write_hdr(tmp_path / "a.mp4", dark + [signal[::-1] for signal in bright], "smpte2084")
    result = scanned(path)
    assert result.source["bright_nits"] > 250
    clip = result.clips[0]
    assert clip["end_s"] <= 1.01
    remux = extracted(path, clip, extraction="remux").content
    transcode = extracted(path, clip, extraction="transcode").content
    with av.open(io.BytesIO(remux)) as container:
        assert float(container.metadata["clipmill_bright_nits"]) == pytest.approx(
            result.source["bright_nits"], rel=1e-4
        )
    assert np.abs(trained(transcode) - trained(remux)).mean() < 3
    alone = write_hdr(tmp_path / "alone.mp4", dark, "smpte2084").read_bytes()
    assert (
        trained(alone).mean() > trained(remux).mean() + 15
    )  # measured on itself, it is a picture with white at 100 nits


def test_a_cut_is_found_in_hdr_as_in_sdr(tmp_path: Path) -> None:
    """PQ has a quarter of the contrast, so cuts between pictures that differ little were lost."""
    shots = [
        [np.clip(texture(96, 170, seed) * 0.25 + base, 0, 255).astype(np.uint8)] * 30
        for seed, base in ((1, 20), (2, 40))
    ]
    pictures = [cv2.merge([grey] * 3) for shot in shots for grey in shot]
    sdr = scanned(write_video(tmp_path / "sdr.mp4", pictures, fps=24))
    hdr = scanned(write_hdr(tmp_path / "hdr.mp4", [graphics_signal(bgr, "smpte2084") for bgr in pictures], "smpte2084"))
    assert [t["start_frame"] for t in sdr.source["transitions"]] == [30]
    assert [t["start_frame"] for t in hdr.source["transitions"]] == [30]
    assert hdr.source["frame_brightness"] == pytest.approx(sdr.source["frame_brightness"], abs=3)


def test_decord_is_refused_hdr(tmp_path: Path) -> None:
    path = write_hdr(tmp_path / "a.mp4", [graphics_signal(bgr, "smpte2084") for bgr in graphics()], "smpte2084")
    with pytest.raises(SampleError, match="without tone mapping"):
        trained(path.read_bytes(), reader="decord")


def test_sdr_says_what_its_tags_say(tmp_path: Path) -> None:
    row = scanned(write_video(tmp_path / "a.mp4", graphics(24), fps=24)).source
    names = ("transfer", "primaries", "matrix", "range", "hdr", "bit_depth", "bright_nits")
    assert [row[name] for name in names] == [None, None, None, None, False, 8, None]


def test_a_matrix_that_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    pictures = [graphics_signal(bgr, "smpte2084") for bgr in graphics(24)]
    path = write_hdr(tmp_path / "a.mp4", pictures, "smpte2084", matrix="ictcp")
    with pytest.raises(SourceError, match="the matrix ictcp cannot be converted"):
        scanned(path)
    with pytest.raises(SampleError, match="cannot be converted"):
        trained(path.read_bytes())


def test_every_other_matrix_gives_a_picture(tmp_path: Path) -> None:
    """swscale refuses what it does not know: constant luminance, derived from primaries, reserved."""
    pictures = [graphics_signal(bgr, "smpte2084") for bgr in graphics(48)]
    right = scanned(write_hdr(tmp_path / "right.mp4", pictures, "smpte2084"))
    for matrix in ("bt2020c", "chroma-derived-nc", "chroma-derived-c"):
        path = write_hdr(tmp_path / f"{matrix}.mp4", pictures, "smpte2084", matrix=matrix)
        result = scanned(path)
        assert result.source["matrix"] == matrix
        assert result.thumbnails == right.thumbnails
        trained(path.read_bytes())
        content = extracted(path, result.clips[0], extraction="transcode").content
        assert np.abs(trained(content) - trained(extracted(path, result.clips[0]).content)).mean() < 3
