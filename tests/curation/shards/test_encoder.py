"""The encoder of one clip, frame by frame: what it says of its file is what the file holds."""

import io
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from clipmill.errors import SourceError
from curation.shards.audio import audio_columns
from curation.shards.clip_row import ExtractedClip
from curation.shards.encoder import Encoder
from curation.shards.resample import Resampler
from curation.video.decode import Video
from curation.video.timed import Frame
from tests.curation.shards.rows import clip_row
from tests.media import write_video

WIDTH, HEIGHT = 64, 48
Planes = tuple[np.ndarray, np.ndarray, np.ndarray]


def planes(y: Any = 128, u: Any = 128, v: Any = 128) -> Planes:
    """Y, U and V of a picture of 64 x 48 pixels; a number stands for a flat plane."""
    shapes = ((HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2), (HEIGHT // 2, WIDTH // 2))
    return tuple(np.broadcast_to(np.uint8(each), shape) for each, shape in zip((y, u, v), shapes, strict=True))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a decoder says of an upright video of that size."""
    path = write_video(tmp_path_factory.mktemp("info") / "a.mp4", [np.zeros((HEIGHT, WIDTH, 3), np.uint8)])
    with path.open("rb") as file, Video(file) as video:
        return video.info


def frames(pictures: Iterable[Planes], info: Any) -> list[Frame]:
    """Frames with timestamps 0, 1, 2..."""
    return [
        Frame(index=i, pts=i, av_frame=av.VideoFrame.from_ndarray(stacked(picture), "yuv420p"), info=info)
        for i, picture in enumerate(pictures)
    ]


def stacked(picture: Planes) -> np.ndarray:
    return np.concatenate([plane.reshape(-1, WIDTH) for plane in picture])


def row(count: int, fps: float | None = 24.0, **changes: Any) -> dict[str, Any]:
    """The clip of that many frames, a tick of its clock apart."""
    ticks = {"frames": count, "fps": fps, "start_pts": 0, "end_pts": count}
    return clip_row("s", 0, **ticks, **changes)


def encoded(given: list[Frame], clip: dict[str, Any] | None = None, **options: Any) -> ExtractedClip:
    encoder = Encoder(clip or row(len(given)), **{"crf": 18, "preset": "veryfast", **options})
    for frame in given:
        encoder.push(frame)
    encoder.finish()
    return encoder.result()


def noise(seed: int, spread: int) -> np.ndarray:
    """One picture's plane of U or V, or a quarter of one of Y."""
    return np.random.default_rng(seed).integers(128 - spread, 128 + spread, (HEIGHT // 2, WIDTH // 2), np.uint8)


def test_a_result_is_what_its_file_holds(info: Any) -> None:
    clip = encoded(frames([planes(y=40 + i) for i in range(30)], info))
    assert (clip.suffix, clip.audio) == ("mp4", audio_columns(None))
    assert {name: value for name, value in clip.shape.items() if name != "psnr_db"} == {
        "codec": "h264",
        "pixel_format": "yuv420p",
        "width": WIDTH,
        "height": HEIGHT,
        "rotation": 0,
        "mirrored": False,
        "sample_aspect_ratio": "1:1",
        "crop": [0, 0, 0, 0],
    }
    with av.open(io.BytesIO(clip.content)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", WIDTH, HEIGHT)
        assert stream.sample_aspect_ratio == 1
        assert container.format.name.startswith("mov,mp4")


@pytest.mark.parametrize("noisy", ["y", "u", "v", "nothing"])
def test_the_error_is_that_of_the_worst_frame_in_luma_or_rgb(noisy: str, info: Any) -> None:
    """Per plane from the decoded file; the weights are the squared norms of BT.709's columns in limited range, / 3."""
    pictures = [planes(y=100)] * 8
    if noisy == "y":
        pictures[5] = planes(y=np.tile(noise(1, 90), (2, 2)))
    elif noisy != "nothing":
        pictures[5] = planes(**{noisy: noise(2, 90)})
    given = frames(pictures, info)
    clip = encoded(given, crf=1 if noisy == "nothing" else 40)
    with av.open(io.BytesIO(clip.content)) as container:
        got = [frame.to_ndarray().astype(float) for frame in container.decode(video=0)]
    assert len(got) == len(pictures)
    worst = 1e-6
    for picture, after in zip(pictures, got, strict=True):
        squared = (stacked(picture) - after) ** 2
        chroma = squared[HEIGHT:].reshape(2, -1).mean(1)
        luma = squared[:HEIGHT].mean()
        worst = max(worst, luma, 1.36 * luma + 1.51 * chroma[0] + 1.17 * chroma[1])
    psnr_db = 10 * np.log10(255**2 / worst)
    assert clip.shape["psnr_db"] == pytest.approx(psnr_db, abs=0.0051)
    assert clip.shape["psnr_db"] == round(clip.shape["psnr_db"], 2)
    assert (psnr_db > 100) == (noisy == "nothing")


def test_a_cut_within_a_second_starts_no_keyframe(info: Any) -> None:
    dark, light = planes(y=np.tile(noise(1, 20), (2, 2)) - 60), planes(y=np.tile(noise(2, 20), (2, 2)) + 60)
    given = frames([dark] * 40 + [light] * 50, info)
    clip = encoded(given, row(90, fps=60.0, time_base_den=60))
    with av.open(io.BytesIO(clip.content)) as container:
        decoded = list(container.decode(video=0))
    assert [i for i, frame in enumerate(decoded) if frame.key_frame] == [0, 60]


def test_ticks_longer_than_the_unit_of_the_clock(info: Any) -> None:
    """Timestamps count ticks of 3/60 s."""
    clip = encoded(frames([planes(y=30 + i) for i in range(45)], info), row(45, time_base_num=3, time_base_den=60))
    with av.open(io.BytesIO(clip.content)) as container:
        decoded = list(container.decode(video=0))
        assert container.duration == pytest.approx(45 * 3 / 60 * av.time_base)
    assert [frame.pts * frame.time_base for frame in decoded] == [Fraction(3 * i, 60) for i in range(45)]
    assert [i for i, frame in enumerate(decoded) if frame.key_frame] == [0, 20, 40]


def test_the_rate_control_is_told_the_frame_rate(info: Any) -> None:
    """x264 weighs its decisions by it; a clip whose rate is not known is taken for one of 25 frames/s."""
    given = [planes(y=np.tile(noise(i, 30), (2, 2))) for i in range(60)]
    known, other, unknown = (encoded(frames(given, info), row(60, fps=fps)).content for fps in (25.0, 5.0, None))
    assert unknown == known != other


def test_the_preset_and_the_factor_are_those_asked_for(info: Any) -> None:
    given = [planes(y=np.tile(noise(i, 30), (2, 2))) for i in range(12)]
    sizes = {
        (preset, crf): len(encoded(frames(given, info), preset=preset, crf=crf).content)
        for preset, crf in (("veryfast", 18), ("slow", 18), ("veryfast", 30))
    }
    assert len(set(sizes.values())) == 3
    assert sizes["veryfast", 30] < sizes["veryfast", 18]


def test_bars_of_the_clip_are_cut_off(info: Any) -> None:
    """An odd row is given up, as 4:2:0 needs pairs."""
    content = np.repeat(np.arange(HEIGHT, dtype=np.uint8)[:, None] * 4, WIDTH, 1)
    clip = encoded(frames([planes(y=content)] * 3, info), row(3, crop_top=8, crop_bottom=16), crf=1)
    assert (clip.shape["width"], clip.shape["height"], clip.shape["crop"]) == (WIDTH, HEIGHT - 24, [0, 0, 0, 0])
    with av.open(io.BytesIO(clip.content)) as container:
        first = next(container.decode(video=0)).to_ndarray()[: HEIGHT - 24]
    assert np.abs(first.astype(int) - content[8:32]).max() <= 2


@pytest.mark.parametrize("fps", [8, 72])
def test_another_frame_rate_is_that_of_the_resampler(fps: int, info: Any) -> None:
    """A higher one repeats frames, the last one at the end."""
    resampler = Resampler(row(24, variable_fps=True), Fraction(fps))
    clip = encoded(frames([planes(y=20 + 8 * i) for i in range(24)], info), resampler.row, resampler=resampler)
    with av.open(io.BytesIO(clip.content)) as container:
        decoded = list(container.decode(video=0))
    assert [frame.pts * frame.time_base for frame in decoded] == [Fraction(i, fps) for i in range(fps)]
    brightness = [frame.to_ndarray()[:HEIGHT].mean() for frame in decoded]
    assert brightness == pytest.approx([20 + 8 * 24 * i / fps for i in range(fps)], abs=9)


def test_frames_that_the_scan_did_not_see_are_an_error(info: Any) -> None:
    given = frames([planes()] * 3, info)
    with pytest.raises(SourceError, match="no frame with timestamp 5: the file differs from the scan") as raised:
        encoded(given, row(3) | {"start_pts": 5})
    assert raised.value.kind == "decode_error"
    with pytest.raises(SourceError, match="3 frames decoded, expected 4: the file differs from the scan") as raised:
        encoded(given, row(4))
    assert raised.value.kind == "decode_error"
