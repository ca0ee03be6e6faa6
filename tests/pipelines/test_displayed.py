"""What comes out is what FFmpeg shows: thumbnails, transcoded clips, and both kinds of clips in training frames."""

import io
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from clipmill.cropping import Margins
from curation.inputs.sources import list_sources
from curation.scan.one_pass import Scan, ScanConfig, scan
from curation.shards.extract import ExtractedClip, ExtractionConfig, extract_clips
from curation.shots.spans import SpanConfig
from curation.video.decode import Video
from tests.ffmpeg import ffmpeg, first_picture
from training.frames import Reader, sample_video

LEVELS = 3.0
"""Mean difference allowed, in 8-bit levels."""
ORIENTATIONS = {
    "upright": (),
    "mirrored": ("-display_hflip",),
    "upside down": ("-display_rotation", "180"),
    "upside down, mirrored": ("-display_vflip",),
    "turned left": ("-display_rotation", "90"),
    "turned right": ("-display_rotation", "-90"),
    "transposed": ("-display_rotation", "90", "-display_hflip"),
    "transposed the other way": ("-display_rotation", "-90", "-display_hflip"),
}


def lettered(width: int, height: int) -> np.ndarray:
    """(height, width, 3) BGR, smooth for the codec's sake, and different from each of its other orientations."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    picture = np.stack([40 + 160 * x, 200 - 120 * y, 60 + 60 * (x + y)], axis=-1)
    picture[(y < 0.3) & (x < 0.25)] = (30, 220, 230)
    picture[(y > 0.8) & (x > 0.4)] = (220, 60, 30)
    return np.clip(picture, 0, 255).astype(np.uint8)


def still_video(path: Path, width: int, height: int, *options: str, before: tuple[str, ...] = ()) -> Path:
    """2 s of one picture; `options` for its encoder, `before` of the copied file."""
    png, encoded = path.with_suffix(".input.png"), path.with_name(f"encoded-{path.name}")
    cv2.imwrite(str(png), lettered(width, height))
    encoder = options or ("-c:v", "libx264", "-preset", "veryfast", "-crf", "12", "-pix_fmt", "yuv420p")
    ffmpeg("-loop", "1", "-framerate", "12", "-t", "2", "-i", png, *encoder, encoded)
    ffmpeg(*before, "-i", encoded, "-c", "copy", path)
    return path


def scanned(path: Path, extraction: str = "auto") -> Scan:
    source = next(iter(list_sources([str(path)])))
    spans = SpanConfig(min_s=1.0, max_s=4.0, extraction=extraction)  # type: ignore[arg-type]
    return scan(source, ScanConfig(spans=spans))


def extracted(path: Path, extraction: str) -> ExtractedClip:
    (clip,) = extract_clips(str(path), scanned(path, extraction).clips, "clips", ExtractionConfig())
    assert isinstance(clip, ExtractedClip), clip
    return clip


def training_frame(clip: ExtractedClip, reader: Reader = "pyav") -> np.ndarray:
    """A frame of the trainer's reader at its displayed size, (height, width, 3) BGR."""
    left, top, right, bottom = clip.shape["crop"]
    sampled = sample_video(
        clip.content,
        lengths=(1,),
        rates=(12.0,),
        size_for=lambda height, width: (height, width),
        crop="center",
        rng=random.Random(0),
        reader=reader,
        margins=Margins(left=left, top=top, right=right, bottom=bottom),
    )
    return sampled.frames_TCHW[0].transpose(1, 2, 0)[:, :, ::-1]


def check(shown: np.ndarray, expected: np.ndarray) -> None:
    """An odd size may have lost the row or column that is stored last; other differences in size are errors."""
    height, width = shown.shape[:2]
    spare_rows, spare_columns = expected.shape[0] - height, expected.shape[1] - width
    assert 0 <= spare_rows <= 1 >= spare_columns >= 0
    difference = min(
        np.abs(shown.astype(float) - expected[top : top + height, left : left + width]).mean()
        for top in {0, spare_rows}
        for left in {0, spare_columns}
    )
    assert difference < LEVELS, f"{difference:.1f} levels from what FFmpeg shows"


def check_everywhere(path: Path, expected: np.ndarray, *, remux: bool = True) -> Any:
    """Thumbnails, transcoded and remuxed clips, and both in training, against a picture. Returns the source's row."""
    found = scanned(path)
    thumbnail = cv2.imdecode(np.frombuffer(found.thumbnails[0][0], np.uint8), cv2.IMREAD_COLOR)
    assert abs(thumbnail.shape[0] - expected.shape[0]) <= 1 >= abs(thumbnail.shape[1] - expected.shape[1])
    height, width = thumbnail.shape[:2]
    check(thumbnail, cv2.resize(expected, (width, height), interpolation=cv2.INTER_AREA))
    assert (found.clips[0]["height"], found.clips[0]["width"]) == expected.shape[:2]
    transcoded = extracted(path, "transcode")
    mp4 = path.with_name("transcoded.mp4")
    mp4.write_bytes(transcoded.content)
    check(first_picture(mp4), expected)
    check(training_frame(transcoded), expected)
    if remux:
        check(training_frame(extracted(path, "remux")), expected)
    return found.source


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("size", [(96, 64), (64, 98), (191, 127)])
def test_all_eight_orientations(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    encoder = () if size[0] % 2 == 0 else ("-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv444p")
    path = still_video(tmp_path / "a.mp4", *size, *encoder, before=ORIENTATIONS[name])
    source = check_everywhere(path, first_picture(path))
    assert source["mirrored"] == ("-display_hflip" in ORIENTATIONS[name] or "-display_vflip" in ORIENTATIONS[name])


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("aspect", ["4/3", "16/11", "1/2"])
def test_orientation_with_pixels_that_are_not_square(tmp_path: Path, name: str, aspect: str) -> None:
    encoder = ("-vf", f"setsar={aspect}", "-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p")
    path = still_video(tmp_path / "a.mp4", 96, 72, *encoder, before=ORIENTATIONS[name])
    check_everywhere(path, first_picture(path, sideways=name.startswith(("turned", "transposed"))))


def test_the_remuxed_clip_is_shown_alike_by_players(tmp_path: Path) -> None:
    for name, arguments in ORIENTATIONS.items():
        path = still_video(tmp_path / "a.mp4", 96, 64, before=arguments)
        clip = extracted(path, "remux")
        mp4 = tmp_path / f"{name}.mp4"
        mp4.write_bytes(clip.content)
        check(first_picture(mp4), first_picture(path))
        with Video(io.BytesIO(clip.content)) as video:
            assert video.info.orientation.rotation == clip.shape["rotation"]
            assert video.info.orientation.mirrored == clip.shape["mirrored"]


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_bars_are_cut_off_whatever_the_orientation(tmp_path: Path, name: str) -> None:
    """Left 24, top 8, right 32, bottom 16 as stored, of pixels that are wider than high."""
    options = ("-vf", "pad=152:88:24:8,setsar=4/3", "-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p")
    path = still_video(tmp_path / "a.mp4", 96, 64, *options, before=ORIENTATIONS[name])
    sideways = name.startswith(("turned", "transposed"))
    (row,) = scanned(path, "remux").clips
    shown = first_picture(path, sideways=sideways)[
        row["crop_top"] : -row["crop_bottom"] or None, row["crop_left"] : -row["crop_right"] or None
    ]
    assert min(line.mean() for line in (shown[0], shown[-1], shown[:, 0], shown[:, -1])) > 40
    assert abs(shown.shape[0] - row["height"]) <= 1 >= abs(shown.shape[1] - row["width"])
    remuxed, transcoded = training_frame(extracted(path, "remux")), training_frame(extracted(path, "transcode"))
    height, width = transcoded.shape[:2]
    assert np.abs(remuxed[:height, :width].astype(float) - transcoded).mean() < LEVELS
    assert np.abs(transcoded.astype(float) - cv2.resize(shown, (width, height))).mean() < 2 * LEVELS
    from_decord = training_frame(extracted(path, "remux"), "decord")
    assert from_decord.shape == remuxed.shape
    assert np.abs(from_decord.astype(float) - remuxed).mean() < LEVELS
