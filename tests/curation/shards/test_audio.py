"""The sound of clips: a tone at each full second of the source is heard there in the clip, at both of its ends."""

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from curation.inputs.sources import list_sources
from curation.scan.one_pass import ScanConfig, scan
from curation.shards.clip_row import ExtractedClip
from curation.shards.extract import ExtractionConfig, extract_clips
from curation.shots.spans import SpanConfig
from tests.ffmpeg import ffmpeg
from training.data_config import DataConfig
from training.samples import read_sample

X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "24", "-bf", "2", "-pix_fmt", "yuv420p")
PICTURE = "testsrc2=s=64x48:r=24:d=7"
TONE = "aevalsrc='0.5*sin(2*PI*1000*t)*lt(mod(t,1),0.1)':s={rate}:d=7"
KEEP = ExtractionConfig(audio="keep")
FRAME_S = 1 / 24


def source(path: Path, *options: str, rate: int = 48000, codec: str = "aac", channels: int = 2) -> Path:
    """Seven seconds with a tone of 0.1 s at each full one."""
    inputs = ("-f", "lavfi", "-i", PICTURE, "-f", "lavfi", "-i", TONE.format(rate=rate))
    ffmpeg(*inputs, *X264, "-c:a", codec, "-ac", str(channels), *options, path)
    return path


def clips_of(path: Path, extraction: str = "transcode", config: ExtractionConfig = KEEP) -> tuple[Any, list[Any]]:
    """The scan, and (row, extracted clip) of clips of 1.5 s or more."""
    (listed,) = list_sources([str(path)])
    scanned = scan(listed, ScanConfig(spans=SpanConfig(min_s=1.0, max_s=2.5, extraction=extraction)))
    assert scanned.clips, scanned.source
    return scanned, list(zip(scanned.clips, extract_clips(str(path), scanned.clips, "clips", config), strict=True))


def heard(content: bytes) -> tuple[np.ndarray, int, float]:
    """Samples of the loudest channel, their rate, and the time of the first one."""
    with av.open(io.BytesIO(content)) as container:
        frames = list(container.decode(audio=0))
    assert frames[0].pts is not None
    channels = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    samples = channels[np.abs(channels).max(1).argmax()]
    return samples, frames[0].sample_rate, float(frames[0].pts * frames[0].time_base)


def onsets(content: bytes) -> list[float]:
    """Times in the clip at which a tone begins."""
    samples, rate, start_s = heard(content)
    loud = np.abs(samples) > 0.2
    width = rate // 100
    starts = [i for i in np.flatnonzero(loud) if not loud[max(0, i - 5 * width) : i].any()]
    return [start_s + i / rate for i in starts]


def lasting(content: bytes) -> tuple[float, float]:
    """Seconds of the video and of the sound, by their streams."""
    with av.open(io.BytesIO(content)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        return float(video.duration * video.time_base), float(audio.duration * audio.time_base)


def check_in_step(clips: list[Any], *, first_s: float = 0.0, within_s: float = 0.002) -> None:
    """Every second that begins within a clip is heard when it is shown. `first_s`: time of the first one."""
    for row, clip in clips:
        assert isinstance(clip, ExtractedClip)
        begins = [s + first_s - row["start_s"] for s in range(7)]
        within = (0.06, row["duration_s"] - 0.02)
        expected = [at_s for at_s in begins if within[0] < at_s < within[1]]
        got = [at_s for at_s in onsets(clip.content) if within[0] < at_s < within[1]]
        assert got == pytest.approx(expected, abs=within_s), row
        shown_s, sounding_s = lasting(clip.content)
        assert shown_s == pytest.approx(row["duration_s"], abs=1e-3)
        assert abs(sounding_s - row["duration_s"]) < FRAME_S


@pytest.mark.parametrize("extraction", ["transcode", "remux"])
@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels"),
    [
        ("a.mp4", "aac", 48000, 2),
        ("a.mp4", "aac", 22050, 1),
        ("a.mov", "pcm_s16le", 44100, 2),
        ("a.mkv", "libopus", 48000, 2),
        ("a.mkv", "libmp3lame", 44100, 2),
        ("a.mkv", "flac", 48000, 6),
        ("a.ts", "ac3", 48000, 2),  # always transcoded
    ],
)
def test_what_is_heard_is_shown(
    tmp_path: Path, extraction: str, name: str, codec: str, rate: int, channels: int
) -> None:
    extraction = "transcode" if name.endswith(".ts") else extraction
    path = source(tmp_path / name, rate=rate, codec=codec, channels=channels)
    scanned, clips = clips_of(path, extraction)
    assert len(clips) >= 2
    assert (scanned.source["audio"], scanned.source["audio_channels"], scanned.source["audio_rate_hz"]) == (
        True, channels, rate,
    )  # fmt: skip
    for row, clip in clips:
        assert row["extraction"] == extraction
        assert clip.audio == {"present": True, "codec": "aac", "channels": channels, "rate": rate, "error_kind": ""}
    check_in_step(clips, first_s=scanned.source["start_s"])


def test_the_video_is_the_same_with_and_without_sound(tmp_path: Path) -> None:
    path = source(tmp_path / "a.mp4")
    for extraction in ("remux", "transcode"):
        _, clips = clips_of(path, extraction)
        _, silent = clips_of(path, extraction, ExtractionConfig())
        for (_, one), (_, other) in zip(clips, silent, strict=True):
            assert _video_packets(one.content) == _video_packets(other.content)
            assert other.audio == {"present": False, "codec": "", "channels": 0, "rate": 0, "error_kind": ""}
            with av.open(io.BytesIO(other.content)) as container:
                assert not container.streams.audio
        again = clips_of(path, extraction)[1]
        assert [clip.content for _, clip in again] == [clip.content for _, clip in clips]


def _video_packets(content: bytes) -> list[tuple[Any, ...]]:
    with av.open(io.BytesIO(content)) as container:
        return [(p.pts, p.dts, p.duration, bytes(p)) for p in container.demux(video=0) if p.size]


def test_sound_and_pictures_are_interleaved_behind_the_index(tmp_path: Path) -> None:
    _, clips = clips_of(source(tmp_path / "a.mp4"))
    for _, clip in clips:
        assert clip.content.index(b"moov") < clip.content.index(b"mdat")
        with av.open(io.BytesIO(clip.content)) as container:
            packets = [(p.pos, float(p.dts * p.time_base)) for p in container.demux() if p.size]
        assert all(later - earlier > -0.5 for (_, earlier), (_, later) in pairwise(sorted(packets)))


@pytest.mark.parametrize("extraction", ["transcode", "remux"])
def test_the_index_of_much_sound_beside_few_pictures_fits_before_them(tmp_path: Path, extraction: str) -> None:
    path, tone = tmp_path / "a.mp4", "sine=f=440:r=48000:d=90"
    inputs = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=1:d=90", "-f", "lavfi", "-i", tone)
    ffmpeg(*inputs, "-c:v", "libx264", "-preset", "ultrafast", "-g", "90", "-pix_fmt", "yuv420p", "-c:a", "aac", path)
    (listed,) = list_sources([str(path)])
    (row,) = scan(listed, ScanConfig(spans=SpanConfig(min_s=1.0, max_s=100.0, extraction=extraction))).clips
    (clip,) = extract_clips(str(path), [row], "clips", KEEP)
    assert isinstance(clip, ExtractedClip), clip
    assert clip.content.index(b"moov") < clip.content.index(b"mdat")
    assert lasting(clip.content) == pytest.approx((90, 90), abs=0.1)


def test_sound_that_starts_late_is_silent_before(tmp_path: Path) -> None:
    silent, tone = tmp_path / "silent.mp4", tmp_path / "tone.m4a"
    ffmpeg("-f", "lavfi", "-i", PICTURE, *X264, silent)
    ffmpeg("-f", "lavfi", "-i", TONE.format(rate=48000), "-c:a", "aac", tone)
    path = tmp_path / "late.mkv"
    ffmpeg("-i", silent, "-itsoffset", "2.6", "-i", tone, "-map", "0:v", "-map", "1:a", "-c", "copy", "-t", "7", path)
    _, clips = clips_of(path)
    present = [clip.audio["present"] for _, clip in clips]
    assert present == sorted(present)
    assert any(present)
    for row, clip in clips:
        if not clip.audio["present"]:
            assert row["end_s"] <= 2.7
            assert clip.audio["error_kind"] == "no_audio_in_clip"
            continue
        samples, rate, _ = heard(clip.content)
        quiet = samples[: max(0, int((2.58 - row["start_s"]) * rate))]
        assert np.abs(quiet).max(initial=0) < 0.01
    heard_clips = [(row, clip) for row, clip in clips if clip.audio["present"]]
    check_in_step(heard_clips, first_s=2.6)


def test_sound_that_ends_early_is_silent_after(tmp_path: Path) -> None:
    _, clips = clips_of(source(tmp_path / "a.mkv", "-af", "atrim=end=4.5"))
    for row, clip in clips:
        if clip.audio["present"] and row["end_s"] > 4.6:
            samples, rate, _ = heard(clip.content)
            assert np.abs(samples[int((4.6 - row["start_s"]) * rate) :]).max() < 0.01
            assert lasting(clip.content)[1] == pytest.approx(row["duration_s"], abs=0.03)
    assert {clip.audio["error_kind"] for _, clip in clips} == {"", "no_audio_in_clip"}


def test_a_source_without_sound_has_clips_without(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    ffmpeg("-f", "lavfi", "-i", PICTURE, *X264, path)
    scanned, clips = clips_of(path)
    assert (scanned.source["audio"], scanned.source["audio_codec"]) == (False, None)
    for _, clip in clips:
        assert clip.audio == {
            "present": False, "codec": "", "channels": 0, "rate": 0, "error_kind": "no_audio",
        }  # fmt: skip


def test_of_several_tracks_the_default_without_commentary_is_kept(tmp_path: Path) -> None:
    tones = [f"aevalsrc='0.5*sin(2*PI*{hz}*t)':s=48000:d=7" for hz in (300, 1000, 3000)]
    for name, dispositions, expected_hz in (
        ("a.mkv", ("0", "default", "0"), 1000),
        ("b.mkv", ("default+comment", "0", "0"), 1000),
        ("c.mkv", ("0", "0", "0"), 300),
    ):
        inputs = [part for tone in tones for part in ("-f", "lavfi", "-i", tone)]
        maps = [part for i in range(4) for part in ("-map", str(i))]
        marks = [part for i, mark in enumerate(dispositions) for part in (f"-disposition:a:{i}", mark)]
        ffmpeg("-f", "lavfi", "-i", PICTURE, *inputs, *maps, *X264, "-c:a", "flac", *marks, tmp_path / name)
        _, clips = clips_of(tmp_path / name)
        samples, rate, _ = heard(clips[0][1].content)
        spectrum = np.abs(np.fft.rfft(samples))
        assert np.argmax(spectrum) * rate / len(samples) == pytest.approx(expected_hz, abs=5)


def test_a_codec_that_is_not_supported_costs_the_sound_alone(tmp_path: Path) -> None:
    path = source(tmp_path / "a.mkv", codec="pcm_s16le")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"A_PCM/INT/LIT", b"A_QQQ/INT/LIT"))
    scanned, clips = clips_of(path)
    assert (scanned.source["audio"], scanned.source["audio_codec"]) == (True, None)
    for _, clip in clips:
        assert isinstance(clip, ExtractedClip)
        assert not clip.audio["present"]
        assert clip.audio["error_kind"] == "unsupported_codec"


def test_variable_frame_rate_stays_in_step(tmp_path: Path) -> None:
    path = source(tmp_path / "a.mp4", "-vf", "select='not(mod(n,3))+gt(n,60)*mod(n,2)'", "-fps_mode", "vfr")
    _, clips = clips_of(path)
    assert any(row["variable_fps"] for row, _ in clips)
    check_in_step(clips)


def test_rebuilt_timestamps_have_no_sound(tmp_path: Path) -> None:
    path = source(tmp_path / "a.mp4")
    (listed,) = list_sources([str(path)])
    rows = [{**row, "timestamps": "rebuilt"} for row in scan(listed).clips]
    for clip in extract_clips(str(path), rows, "clips", KEEP):
        assert isinstance(clip, ExtractedClip)
        assert clip.audio["error_kind"] == "rebuilt_timestamps"


def test_training_reads_the_pictures_of_clips_with_sound(tmp_path: Path) -> None:
    path = source(tmp_path / "a.mp4")
    config = DataConfig(frames=4, height_px=32, width_px=48, fps=(12.0,))
    pairs = zip(clips_of(path)[1], clips_of(path, config=ExtractionConfig())[1], strict=True)
    for (_, one), (_, other) in pairs:
        frames = [read_sample("a", {"mp4": clip.content}, config, seed=0).frames_TCHW for clip in (one, other)]
        assert bool((frames[0] == frames[1]).all())
