"""What comes out is what FFmpeg shows: thumbnails, transcoded clips, and both kinds of clips in training frames."""

import io
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from clipmill.cropping import Margins
from clipmill.errors import SourceError
from curation.inputs.sources import list_sources
from curation.scan.one_pass import Scan, ScanConfig, scan
from curation.shards.clip_row import ExtractedClip
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shots.spans import SpanConfig
from curation.video.decode import Video
from tests.clean_aperture import with_clean_aperture
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


def training_frame(clip: ExtractedClip, reader: Reader = "pyav", *, seed: int = 0) -> np.ndarray:
    """A frame of the trainer's reader at its displayed size, (height, width, 3) BGR."""
    left, top, right, bottom = clip.shape["crop"]
    sampled = sample_video(
        clip.content,
        lengths=(1,),
        rates=(12.0,),
        size_for=lambda height, width: (height, width),
        crop="center",
        rng=random.Random(seed),
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


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("name", ["upright", "turned right", "transposed"])
def test_what_the_container_crops_is_not_shown(tmp_path: Path, name: str, container: str) -> None:
    whole = still_video(tmp_path / "whole.mp4", 96, 64, before=ORIENTATIONS[name])
    path = tmp_path / "a.mp4"
    path.write_bytes(with_clean_aperture(whole.read_bytes()))
    if container == "mkv":
        ffmpeg("-i", path, "-c", "copy", tmp_path / "a.mkv")
        path = tmp_path / "a.mkv"
    expected = first_picture(path)
    assert sorted(expected.shape[:2]) == [40, 56]
    check_everywhere(path, expected)
    (clip,) = scanned(path).clips
    assert clip["extraction"] == "transcode"
    assert extracted(path, "remux").shape["crop"] == [16, 18, 24, 6]
    check(training_frame(extracted(path, "remux"), "decord"), expected)


def test_what_the_codec_crops_at_the_left_is_not_shown(tmp_path: Path) -> None:
    """By less than what decoders align rows to."""
    whole = still_video(tmp_path / "whole.mp4", 320, 240)
    path = tmp_path / "a.mp4"
    crop = "crop_left=20:crop_right=60:crop_top=10:crop_bottom=30"
    ffmpeg("-i", whole, "-c", "copy", "-bsf:v", f"h264_metadata={crop}", path)
    expected = first_picture(path)
    assert expected.shape[:2] == (200, 240)
    check_everywhere(path, expected)


def aspects_in_one_stream(folder: Path, codec: str) -> Path:
    """A broadcast that goes from 4:3 to 16:9 pictures of the same 96 x 72 pixels."""
    parts = []
    for aspect in ("4/3", "16/9"):
        part = folder / f"{aspect[0]}.ts"
        options = ("-vf", f"setdar={aspect}", "-c:v", codec, "-g", "12", "-bf", "2", "-q:v", "2", "-pix_fmt", "yuv420p")
        still_video(folder / "part.ts", 96, 72, *options).rename(part)
        parts.append(part.read_bytes())
    path = folder / "a.ts"
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_the_pixel_aspect_may_change_on_the_way(tmp_path: Path, codec: str) -> None:
    path = aspects_in_one_stream(tmp_path, codec)
    found = scanned(path)
    assert [(clip["width"], clip["height"]) for clip in found.clips] == [(96, 72), (128, 72)]
    assert [clip["frames"] for clip in found.clips] in ([24, 24], [23, 24])  # MPEG-2 does not end where it is cut off
    thumbnail = cv2.imdecode(np.frombuffer(found.thumbnails[1][1], np.uint8), cv2.IMREAD_COLOR)
    assert thumbnail.shape[:2] == (72, 128)
    for clip in extract_clips(str(path), found.clips, "clips", ExtractionConfig()):
        assert isinstance(clip, ExtractedClip), clip
        check(training_frame(clip), cv2.resize(lettered(96, 72), (clip.shape["width"], 72)))


def test_an_orientation_that_the_codec_states_holds_until_it_states_another(tmp_path: Path) -> None:
    plain = still_video(tmp_path / "plain.ts", 96, 64)
    rotated = tmp_path / "rotated.ts"
    ffmpeg("-i", plain, "-c", "copy", "-bsf:v", "h264_metadata=display_orientation=insert:rotate=90", rotated)
    path = tmp_path / "a.ts"
    path.write_bytes(plain.read_bytes() + rotated.read_bytes())
    found = scanned(path)
    assert [(clip["width"], clip["height"]) for clip in found.clips] == [(96, 64), (64, 96)]
    expected = first_picture(rotated)
    first, second = extract_clips(str(path), found.clips, "clips", ExtractionConfig())
    assert isinstance(first, ExtractedClip)
    assert isinstance(second, ExtractedClip)
    check(training_frame(first), lettered(96, 64))
    check(training_frame(second), expected)
    mp4 = tmp_path / "a.mp4"
    ffmpeg("-i", rotated, "-c", "copy", mp4)
    for seed in range(4):  # any frame of it
        check(training_frame(extracted(mp4, "remux"), seed=seed), expected)


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("a.mov", ("-c:v", "qtrle")),
        ("a.mov", ("-c:v", "png", "-pix_fmt", "rgba")),
        ("a.mov", ("-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le")),
        ("a.mkv", ("-c:v", "ffv1", "-pix_fmt", "yuva420p")),
        ("a.webm", ("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0", "-crf", "8", "-b:v", "0")),
        ("a.webm", ("-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0", "-crf", "4", "-b:v", "2M")),
        ("a.avi", ("-c:v", "utvideo", "-pix_fmt", "gbrap")),
    ],
)
def test_what_is_transparent_is_shown_on_black(tmp_path: Path, name: str, encoder: tuple[str, ...]) -> None:
    """The left third is transparent, the middle one half so; what lies under it is not shown."""
    picture = cv2.cvtColor(lettered(96, 64), cv2.COLOR_BGR2BGRA)
    picture[:, :32, 3], picture[:, 32:64, 3] = 0, 128
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    path = tmp_path / name
    ffmpeg("-loop", "1", "-framerate", "12", "-t", "2", "-i", tmp_path / "a.png", *encoder, path)
    expected = (picture[:, :, :3] * (picture[:, :, 3:] / 255)).astype(np.uint8)
    source = check_everywhere(path, expected, remux=False)
    assert source["alpha"]
    assert {clip["extraction"] for clip in scanned(path).clips} == {"transcode"}


def test_an_encrypted_file_says_so(tmp_path: Path) -> None:
    plain = still_video(tmp_path / "plain.mp4", 96, 64)
    path = tmp_path / "a.mp4"
    key = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "1" * 32, "-encryption_kid", "2" * 32)
    ffmpeg("-i", plain, "-c", "copy", *key, path)
    with pytest.raises(SourceError, match="encrypted: the video stream is encrypted"):
        scanned(path)
