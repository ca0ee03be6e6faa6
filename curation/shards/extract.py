"""Extract clips from their source: as MP4, remuxed (packets unchanged) or transcoded (frame-exact), or as one JPEG.

The paper cuts its clips in the same keyframe-aware way (section 3.1, App. C). Nothing here knows tar files or Ray.
"""

import io
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import av
import cv2
import numpy as np
from pydantic import Field

from clipmill.config import Config
from clipmill.cropping import NO_MARGINS, Cropper, Margins
from clipmill.errors import SourceError
from clipmill.hdr import BRIGHT_NITS_TAG
from curation.inputs.stats import open_source, stat_source
from curation.shards.mux import mux, open_mp4
from curation.shards.resample import Resampler, needs_resampling
from curation.shots.spans import remuxed_packets
from curation.video.decode import Limits, Video
from curation.video.display import DisplayTransform
from curation.video.fields import PROGRESSIVE, deinterlaced
from curation.video.info import VideoInfo
from curation.video.resize import FrameResizer
from curation.video.timed import Frame

Kind = Literal["clips", "images"]
ClipRow = Mapping[str, Any]
"""A row of the `clips` table; may include other columns of the joined view."""

_KEPT_TAGS = ("avc1", "avc3", "hvc1", "hev1")
"""Sample entries that say where parameter sets are; remuxing keeps them. Others are left to the muxer."""

_DB_PER_CRF = 0.8
"""PSNR gain per step of the rate factor, slightly below the value measured on grainy footage."""
_RGB_GAIN = (1.36, 1.51, 1.17)
"""Mean squared error in RGB per error in Y, U and V: BT.709, limited range, the largest of the usual ones."""


class ExtractionConfig(Config):
    """Transcoding and JPEG settings."""

    crf: int = Field(18, ge=1, le=30)
    """Constant rate factor of x264 to try first; lower is closer to the source and larger."""
    min_psnr_db: float = Field(40.0, ge=30, le=50)
    """Minimum PSNR of every transcoded frame, in luma and in RGB. A clip below it is transcoded again with a lower
    factor."""
    preset: Literal["veryfast", "faster", "fast", "medium", "slow", "slower"] = "fast"
    """Preset of x264; slower presets give smaller files and use more CPU time."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    """JPEG quality of the middle frames written by `--images`."""
    limits: Limits = Field(default_factory=Limits)
    """Resource limits for reading a source, as in the scan."""


@dataclass(frozen=True, kw_only=True)
class ExtractedClip:
    """The file of one clip, and its stream parameters."""

    content: bytes
    suffix: Literal["mp4", "jpg"]
    shape: dict[str, Any] = field(default_factory=dict)
    """codec, pixel_format, width, height, rotation, mirrored, sample_aspect_ratio as they are in the file; crop: what
    is still to be cut off at the left, top, right and bottom of each decoded frame."""


def extract_clips(
    uri: str, clips: Sequence[ClipRow], kind: Kind, config: ExtractionConfig, fps: Fraction | None = None
) -> list[ExtractedClip | SourceError]:
    """Extract clips of one source, in the order given; a clip that cannot be extracted is a SourceError in its place.

    "clips" yields MP4 files, remuxed or transcoded according to each row's `extraction`, the latter at the rate `fps`
    if one is given; "images" the middle frame, upright, as JPEG. If the source is missing or has changed since the scan
    (size or version), all clips fail. Runs native code on untrusted bytes: call it through
    `curation.scan.isolation.Isolated`.
    """
    try:
        check_unchanged(uri, clips[0]["source_id"])
        with open_source(uri, max_copy_bytes=config.limits.spool_bytes) as file, Video(file, config.limits) as video:
            return _extract_all(video, clips, kind, config, fps)
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
    video: Video, clips: Sequence[ClipRow], kind: Kind, config: ExtractionConfig, fps: Fraction | None
) -> list[ExtractedClip | SourceError]:
    extracted: dict[str, ExtractedClip | SourceError] = {}
    to_transcode = []
    for clip in clips:
        if kind == "clips" and clip["extraction"] == "transcode":
            to_transcode.append(clip)
            continue
        try:
            extracted[clip["clip_id"]] = (
                remux_clip(video, clip) if kind == "clips" else _middle_frame(video, clip, config)
            )
        except SourceError as error:
            extracted[clip["clip_id"]] = error
        except av.FFmpegError as error:
            extracted[clip["clip_id"]] = decode_failure(error)
    extracted.update(_transcode(video, to_transcode, config, fps))
    return [extracted[clip["clip_id"]] for clip in clips]


def remux_clip(video: Video, clip: ClipRow) -> ExtractedClip:
    """MP4 with the source's packets, unchanged; timestamps start at 0 with the source's intervals.

    Orientation and pixel aspect stay metadata, and bars stay. Raises SourceError if the row's packets are not found.
    """
    packets = _packets_between(video, clip["start_pts"], clip["end_pts"])
    if len(packets) != clip["frames"] or len({p.pts for p in packets}) != len(packets):
        raise SourceError(
            "decode_error", f"{len(packets)} packets found, expected {clip['frames']}: the file differs from the scan"
        )
    source, info = video.stream, video.info
    file = io.BytesIO()
    with open_mp4(file, clip, len(source.codec_context.extradata or b"")) as mp4:
        if info.bright_nits is not None:
            mp4.metadata[BRIGHT_NITS_TAG] = f"{info.bright_nits:.6g}"
        # opaque: from the decoder, for an encoder of the same name need not exist.
        stream = mp4.add_stream_from_template(source, opaque=True)
        stream.codec_context.sample_aspect_ratio = info.sample_aspect_ratio
        if source.codec_context.codec_tag in _KEPT_TAGS:
            stream.codec_context.codec_tag = source.codec_context.codec_tag
        mux(mp4, stream, packets, clip, first_pts=clip["start_pts"], unit=clip["time_base_num"])
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
    return ExtractedClip(content=file.getvalue(), suffix="mp4", shape=shape)


def _middle_frame(video: Video, clip: ClipRow, config: ExtractionConfig) -> ExtractedClip:
    try:
        return middle_frame(video, clip, config)
    except SourceError:
        if clip["resume"] is None:
            raise
        return middle_frame(video, {**clip, "resume": None}, config)


def middle_frame(video: Video, clip: ClipRow, config: ExtractionConfig) -> ExtractedClip:
    """JPEG, full size and upright, of the clip's middle frame as seen by the scorers.

    Raises SourceError if there is no frame with that timestamp.
    """
    if not clip["thumbnail_pts"]:
        raise SourceError("decode_error", "the scan kept no thumbnail for this clip")
    pts = clip["thumbnail_pts"][1]
    frame = next((frame for frame in clip_frames(video, clip, pts, pts + 1) if frame.pts >= pts), None)
    if frame is None or frame.pts != pts:
        raise SourceError(
            "decode_error", f"no frame with timestamp {pts} could be decoded: the file differs from the scan"
        )
    shown = Cropper(clip_bars(clip, frame.info))(frame.av_frame)
    long_side_px = max(clip["width"], clip["height"])
    bgr = FrameResizer(frame.info.bright_nits).upright_bgr(shown, frame.info, long_side_px=long_side_px)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality])
    shape = {"codec": "jpeg", "width": bgr.shape[1], "height": bgr.shape[0], "pts": pts}
    return ExtractedClip(content=jpeg.tobytes(), suffix="jpg", shape=shape)


def clip_bars(clip: ClipRow, info: VideoInfo) -> Margins:
    """The bars of a clip in pixels of the decoded frame, from its row, where they are of the displayed one; even."""
    shown = Margins(**{side: clip[f"crop_{side}"] for side in ("left", "top", "right", "bottom")})
    bars, aspect = shown.of_decoded(info.orientation), info.sample_aspect_ratio
    left, right = (2 * math.ceil(px / aspect / 2 - Fraction(1, 4)) for px in (bars.left, bars.right))
    return Margins(left=left, top=bars.top, right=right, bottom=bars.bottom)


def clip_frames(video: Video, clip: ClipRow, start_pts: int, end_pts: int) -> Iterator[Frame]:
    """Frames with start_pts <= pts < end_pts without combs, and of interlaced footage the neighbours."""
    interlaced = clip["interlaced"] != PROGRESSIVE
    frames = video.frames_between(
        start_pts, end_pts, timestamps=clip["timestamps"], resume=clip["resume"], neighbors=interlaced
    )
    return deinterlaced(frames, clip["interlaced"])


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

    Where the time line was rebuilt, each clip with a place to resume decoding alone, and the others together, from the
    start of the file. None that are deinterlaced differently.
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
    video: Video, clips: Sequence[ClipRow], config: ExtractionConfig, fps: Fraction | None
) -> dict[str, ExtractedClip | SourceError]:
    extracted: dict[str, ExtractedClip | SourceError] = {}
    crf = {clip["clip_id"]: config.crf for clip in clips}
    while clips:
        again: list[ClipRow] = []
        for group in decode_passes(video, clips):
            for clip, encoder, failure in _transcode_in_one_pass(video, group, crf, config, fps):
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
    video: Video, clips: list[ClipRow], crf: Mapping[str, int], config: ExtractionConfig, fps: Fraction | None
) -> Iterator[tuple[ClipRow, "_Encoder", SourceError | None]]:
    frames = clip_frames(video, clips[0], clips[0]["start_pts"], clips[-1]["end_pts"])
    frame = next(frames, None)
    for clip in clips:
        resampler = Resampler(clip, fps) if fps and needs_resampling(clip, fps) else None
        row, failure = resampler.row if resampler else clip, None
        encoder = _Encoder(video, row, crf[clip["clip_id"]], config.preset, resampler)
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


class _Encoder:
    """Frames of one clip in, an H.264 file out: 8-bit 4:2:0, upright, square pixels, a keyframe every second."""

    def __init__(self, video: Video, clip: ClipRow, crf: int, preset: str, resampler: Resampler | None = None) -> None:
        self._clip, self._crf, self._preset, self._resampler = clip, crf, preset, resampler
        self.psnr_db = math.inf
        """Of the worst frame, in luma or RGB, whichever is lower."""
        self._display: DisplayTransform | None = None
        self._file = io.BytesIO()
        self._mp4 = open_mp4(self._file, clip, 0)
        self._stream: Any = None
        self._packets: list[av.Packet] = []
        self._frames = 0
        self._first_pts = clip["start_pts"]
        self._last_second = -1

    def push(self, frame: Frame) -> None:
        for each in self._resampler.push(frame) if self._resampler else [frame]:
            self._encode(each)

    def _encode(self, frame: Frame) -> None:
        if self._frames == 0 and frame.pts != self._first_pts:
            raise SourceError(
                "decode_error", f"no frame with timestamp {self._first_pts}: the file differs from the scan"
            )
        if self._display is None:
            self._display = DisplayTransform(frame.info, clip_bars(self._clip, frame.info))
        displayed = self._display(frame.av_frame)
        if self._stream is None:
            self._open(displayed)
        elapsed = (frame.pts - self._first_pts) * self._clip["time_base_num"]
        second = elapsed // self._clip["time_base_den"]
        displayed.pts, displayed.time_base = elapsed, Fraction(1, self._clip["time_base_den"])
        # What the source's encoder made of the frame must not steer ours.
        starts_second = second > self._last_second
        displayed.pict_type = av.video.frame.PictureType.I if starts_second else av.video.frame.PictureType.NONE
        self._last_second = second
        self._keep(self._stream.encode(displayed))
        self._frames += 1

    def finish(self) -> None:
        for each in self._resampler.end() if self._resampler else []:
            self._encode(each)
        if self._frames != self._clip["frames"]:
            raise SourceError(
                "decode_error",
                f"{self._frames} frames decoded, expected {self._clip['frames']}: the file differs from the scan",
            )
        self._keep(self._stream.encode(None))
        with self._mp4:
            mux(self._mp4, self._stream, self._packets, self._clip, first_pts=0, unit=1)

    def result(self) -> ExtractedClip:
        context = self._stream.codec_context
        shape = {
            "codec": "h264",
            "pixel_format": context.pix_fmt,
            "width": context.width,
            "height": context.height,
            "rotation": 0,
            "mirrored": False,
            "sample_aspect_ratio": "1:1",
            "crop": list(NO_MARGINS.sides),
            "psnr_db": round(self.psnr_db, 2),
        }
        return ExtractedClip(content=self._file.getvalue(), suffix="mp4", shape=shape)

    def _keep(self, packets: list[av.Packet]) -> None:
        pixels = self._stream.codec_context.width * self._stream.codec_context.height
        for packet in packets:
            *_, y, u, v = struct.unpack("=IBBHQQQ", bytes(packet.get_sidedata("quality_stats")))
            mse = max(
                y / pixels, sum(gain * sse / pixels for gain, sse in zip(_RGB_GAIN, (y, 4 * u, 4 * v), strict=True))
            )
            self.psnr_db = min(self.psnr_db, 10 * math.log10(255**2 / max(mse, 1e-6)))
            self._packets.append(packet)

    def _open(self, displayed: av.VideoFrame) -> None:
        options = {
            "preset": self._preset,
            "crf": str(self._crf),
            "flags": "+psnr",  # each packet tells how far it is from its frame
            "mbtree": "0",  # x264's AVX-512 code for it reads stray memory: other bytes on every run
            "forced-idr": "1",
            "sc_threshold": "0",
        }
        rate = Fraction(self._clip["fps"] or 25).limit_denominator(1001)
        base = Fraction(1, self._clip["time_base_den"])
        stream = self._mp4.add_stream(
            "libx264", rate, options=options, width=displayed.width, height=displayed.height, time_base=base
        )
        context = stream.codec_context
        context.thread_count = 1
        context.pix_fmt = displayed.format.name
        context.sample_aspect_ratio = Fraction(1)
        context.colorspace, context.color_range = displayed.colorspace, displayed.color_range
        context.color_primaries, context.color_trc = displayed.color_primaries, displayed.color_trc
        self._stream = stream


def decode_failure(error: av.FFmpegError) -> SourceError:
    """As the error of a clip. Raises MemoryError if it is one."""
    if isinstance(error, MemoryError):
        raise error
    return SourceError("decode_error", f"FFmpeg failed: {error.strerror or error}")
