"""Extract clips from their source: as MP4, remuxed (packets unchanged) or transcoded (frame-exact), or as one JPEG.

The paper cuts its clips in the same keyframe-aware way (section 3.1, App. C). Nothing here knows tar files or Ray.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from pydantic import Field

from clipmill.config import Config
from clipmill.errors import SourceError
from clipmill.hdr import BRIGHT_NITS_TAG
from curation.inputs.stats import open_source, stat_source
from curation.shards.audio import ClipAudio, NoAudio, audio_columns, read_audio
from curation.shards.clip_row import ClipRow, ExtractedClip, clip_bars, clip_frames
from curation.shards.encoder import Encoder
from curation.shards.mux import mux, open_mp4
from curation.shards.pictures import FrameChoice, PictureChoice, clip_pictures
from curation.shards.resample import Resampler, needs_resampling
from curation.shots.spans import remuxed_packets
from curation.video.decode import Limits, Video

Kind = Literal["clips", "images"]
Audio = Mapping[str, ClipAudio | NoAudio]
"""clip_id -> its sound, or why it has none; empty if no clip is to have one."""

_KEPT_TAGS = ("avc1", "avc3", "hvc1", "hev1")
"""Sample entries that say where parameter sets are; remuxing keeps them. Others are left to the muxer."""

_DB_PER_CRF = 0.8
"""PSNR gain per step of the rate factor, slightly below the value measured on grainy footage."""


class ExtractionConfig(Config):
    """Transcoding and JPEG settings."""

    crf: int = Field(18, ge=1, le=30)
    """Constant rate factor of x264 to try first; lower is closer to the source and larger."""
    min_psnr_db: float = Field(40.0, ge=30, le=50)
    """Minimum PSNR of every transcoded frame, in luma and in RGB. A clip below it is transcoded again with a lower
    factor."""
    preset: Literal["veryfast", "faster", "fast", "medium", "slow", "slower"] = "fast"
    """Preset of x264; slower presets give smaller files and use more CPU time."""
    audio: Literal["drop", "keep"] = "drop"
    """`keep`: clips have their sound, encoded as AAC, from the start of the first frame to the end of the last one."""
    frames_per_clip: int = Field(1, ge=1, le=64)
    """Frames of each clip written by `--images`. A clip with fewer frames gives all of them."""
    frame_choice: FrameChoice = "even"
    """`even`: the frames in the middle of equal parts of the clip. `sharpest`: the sharpest frame of each part, which
    decodes the whole clip."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    """JPEG quality of the frames written by `--images`."""
    limits: Limits = Field(default_factory=Limits)
    """Resource limits for reading a source, as in the scan."""

    @property
    def pictures(self) -> PictureChoice:
        """The pictures of each clip."""
        return PictureChoice(per_clip=self.frames_per_clip, choice=self.frame_choice, jpeg_quality=self.jpeg_quality)


def extract_clips(
    uri: str, clips: Sequence[ClipRow], kind: Kind, config: ExtractionConfig, fps: Fraction | None = None
) -> list[ExtractedClip | SourceError]:
    """Extract clips of one source, in the order given; a clip that cannot be extracted is a SourceError in its place.

    "clips" yields MP4 files, remuxed or transcoded according to each row's `extraction`, the latter at the rate `fps`
    if one is given; "images" their pictures, upright, as JPEG. If the source is missing or has changed since the scan
    (size or version), all clips fail. Runs native code on untrusted bytes: call it through
    `curation.scan.isolation.Isolated`.
    """
    try:
        check_unchanged(uri, clips[0]["source_id"])
        with open_source(uri, max_copy_bytes=config.limits.spool_bytes) as file:
            audio = read_audio(file, clips) if kind == "clips" and config.audio == "keep" else {}
            file.seek(0)
            with Video(file, config.limits) as video:
                return _extract_all(video, clips, kind, config, fps, audio)
    except SourceError as error:
        return [error] * len(clips)


def check_unchanged(uri: str, source_id: str) -> None:
    """Raise SourceError for a source that is missing or differs from the one that was scanned."""
    source = stat_source(uri)
    if source.error is not None:
        raise source.error
    if source.source_id != source_id:
        raise SourceError("unreadable", "the file has changed since the scan: its size or version differs")


def _extract_all(
    video: Video,
    clips: Sequence[ClipRow],
    kind: Kind,
    config: ExtractionConfig,
    fps: Fraction | None,
    audio: Audio,
) -> list[ExtractedClip | SourceError]:
    extracted: dict[str, ExtractedClip | SourceError] = {}
    to_transcode = []
    for clip in clips:
        if kind == "clips" and clip["extraction"] == "transcode":
            to_transcode.append(clip)
            continue
        try:
            extracted[clip["clip_id"]] = (
                remux_clip(video, clip, audio.get(clip["clip_id"]))
                if kind == "clips"
                else clip_pictures(video, clip, config.pictures)
            )
        except SourceError as error:
            extracted[clip["clip_id"]] = error
        except av.FFmpegError as error:
            extracted[clip["clip_id"]] = decode_failure(error)
    extracted.update(_transcode(video, to_transcode, config, fps, audio))
    return [extracted[clip["clip_id"]] for clip in clips]


def remux_clip(video: Video, clip: ClipRow, audio: ClipAudio | NoAudio | None = None) -> ExtractedClip:
    """MP4 with the source's packets, unchanged, and the clip's sound, if any; timestamps start at 0 with the source's
    intervals.

    Orientation and pixel aspect stay metadata, and bars stay. Raises SourceError if the row's packets are not found.
    """
    packets = _packets_between(video, clip["start_pts"], clip["end_pts"])
    if len(packets) != clip["frames"] or len({p.pts for p in packets}) != len(packets):
        raise SourceError(
            "decode_error", f"{len(packets)} packets found, expected {clip['frames']}: the file differs from the scan"
        )
    source, info = video.stream, video.info
    file = io.BytesIO()
    sound = audio if isinstance(audio, ClipAudio) else None
    extra_bytes, audio_packets = len(source.codec_context.extradata or b""), len(sound.packets) if sound else 0
    with open_mp4(file, clip, extra_bytes, audio_packets=audio_packets) as mp4:
        if info.bright_nits is not None:
            mp4.metadata[BRIGHT_NITS_TAG] = f"{info.bright_nits:.6g}"
        # opaque: copied from the decoder, since there may be no encoder of the same name.
        stream = mp4.add_stream_from_template(source, opaque=True)
        stream.codec_context.sample_aspect_ratio = info.sample_aspect_ratio
        if source.codec_context.codec_tag in _KEPT_TAGS:
            stream.codec_context.codec_tag = source.codec_context.codec_tag
        heard = sound.packets_of(sound.add_stream(mp4)) if sound else ()
        mux(mp4, stream, packets, clip, first_pts=clip["start_pts"], unit=clip["time_base_num"], audio=heard)
    shape = {
        "codec": info.codec,
        "pixel_format": info.pixel_format,
        "width": info.coded_width + info.margins.left + info.margins.right,
        "height": info.coded_height + info.margins.top + info.margins.bottom,
        "rotation": info.orientation.rotation,
        "mirrored": info.orientation.mirrored,
        "sample_aspect_ratio": f"{info.sample_aspect_ratio.numerator}:{info.sample_aspect_ratio.denominator}",
        "crop": list(clip_bars(clip, info).plus(info.margins).sides),
    }
    return ExtractedClip(content=file.getvalue(), suffix="mp4", shape=shape, audio=audio_columns(audio))


def _packets_between(video: Video, start_pts: int, end_pts: int) -> list[av.Packet]:
    for seek_pts in (start_pts, None):  # the second for an index that misleads
        packets: list[av.Packet] = []
        for packet in video.demux(seek_pts):
            if not packets and packet.pts != start_pts:
                continue
            if packet.pts is None:
                raise SourceError("decode_error", "a packet has no timestamp: the file differs from the scan")
            if packet.pts >= end_pts:
                break
            packets.append(packet)
        if packets:
            wanted_pts = set(remuxed_packets(np.array([p.pts for p in packets], np.int64), start_pts, end_pts).tolist())
            return [packet for packet in packets if packet.pts in wanted_pts]
    raise SourceError("decode_error", f"no packet with timestamp {start_pts} found: the file differs from the scan")


def decode_passes(video: Video, clips: Iterable[ClipRow]) -> Iterator[list[ClipRow]]:
    """Clips that share one decode: those whose keyframe precedes the end of the clip before them.

    With rebuilt timestamps, clips with a resume point are decoded alone and the others together from the start of the
    file. Clips that are deinterlaced differently never share a decode.
    """
    group: list[ClipRow] = []
    for clip in sorted(clips, key=lambda c: c["start_pts"]):
        if group and clip["interlaced"] != group[-1]["interlaced"]:
            yield group
            group = []
        if clip["resume"] is not None:
            yield [clip]
            continue
        if clip["timestamps"] == "rebuilt":
            group.append(clip)
            continue
        key_pts = None
        with suppress(av.FFmpegError):
            key_pts = next((packet.pts for packet in video.demux(clip["start_pts"])), None)
        end_pts = group[-1]["end_pts"] if group else None
        if end_pts is not None and (key_pts is None or key_pts >= end_pts or clip["start_pts"] < end_pts):
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


def _transcode(
    video: Video, clips: Sequence[ClipRow], config: ExtractionConfig, fps: Fraction | None, audio: Audio
) -> dict[str, ExtractedClip | SourceError]:
    extracted: dict[str, ExtractedClip | SourceError] = {}
    crf = {clip["clip_id"]: config.crf for clip in clips}
    while clips:
        again: list[ClipRow] = []
        for group in decode_passes(video, clips):
            for clip, encoder, failure in _transcode_in_one_pass(video, group, crf, config, fps, audio):
                clip_id = clip["clip_id"]
                if failure and clip["resume"] is not None:
                    again.append({**clip, "resume": None})
                    continue
                missing_db = 0.0 if failure else config.min_psnr_db - encoder.psnr_db
                if missing_db > 0 and crf[clip_id] > 1:
                    crf[clip_id] = max(1, crf[clip_id] - math.ceil(missing_db / _DB_PER_CRF))
                    again.append(clip)
                else:
                    extracted[clip_id] = failure or encoder.result()
        clips = again
    return extracted


def _transcode_in_one_pass(
    video: Video,
    clips: list[ClipRow],
    crf: Mapping[str, int],
    config: ExtractionConfig,
    fps: Fraction | None,
    audio: Audio,
) -> Iterator[tuple[ClipRow, "Encoder", SourceError | None]]:
    frames = clip_frames(video, clips[0], clips[0]["start_pts"], clips[-1]["end_pts"])
    frame = next(frames, None)
    for clip in clips:
        clip_id, failure = clip["clip_id"], None
        resampler = Resampler(clip, fps) if fps and needs_resampling(clip, fps) else None
        row = resampler.row if resampler else clip
        encoder = Encoder(row, crf[clip_id], config.preset, audio.get(clip_id), resampler)
        while frame is not None and frame.pts < clip["end_pts"]:
            if frame.pts >= clip["start_pts"] and failure is None:
                failure = _attempt(encoder.push, frame)
            frame = next(frames, None)
        yield clip, encoder, failure or _attempt(encoder.finish)


def _attempt(step: Callable[..., None], *args: Any) -> SourceError | None:
    try:
        step(*args)
    except SourceError as error:
        return error
    except av.FFmpegError as error:
        return decode_failure(error)
    return None


def decode_failure(error: av.FFmpegError) -> SourceError:
    """As the error of a clip. Raises MemoryError if it is one."""
    if isinstance(error, MemoryError):
        raise error
    return SourceError("decode_error", f"FFmpeg failed: {error.strerror or error}")
