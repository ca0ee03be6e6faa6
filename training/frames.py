"""Decode one clip or image: select frames by timestamp, decode, rotate, resize and crop.

Tensor layouts: T frames, C = 3 channels, H, W pixels.
"""

import io
import random
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.stream import Disposition
from numpy.typing import NDArray
from PIL import Image

from clipmill.cropping import NO_MARGINS, Margins
from clipmill.errors import SourceError
from clipmill.hdr import bright_nits_of_packets, stated_bright_nits
from clipmill.tracks import candidate_streams
from clipmill.video import (
    CONTAINERS,
    HDR_TRANSFERS,
    MAX_PIXELS,
    MAX_STREAMS,
    UPRIGHT,
    Orientation,
    demuxer_options,
    orientation_of,
    pixel_aspect,
)
from training.data_config import Crop, Reader
from training.fit import Fit, Planes, Size
from training.frame_choice import Choice, Distinct, choose_frames
from training.sample_error import SampleError, check_pixels

MAX_PACKETS = 100_000
"""Limit on the packets of a clip's video stream."""
MAX_DECODED_FRAMES = 10_000
"""Limit on frames decoded per sample, from the keyframe before the first selected frame to the last one."""
MAX_SAMPLE_S = 60.0
"""CPU seconds of the reading thread per sample; typical clips take a fraction of one."""
_MAX_DECORD_BYTES = 1 << 30
"""Limit on the frames decord returns at once, at their original size."""

_OPTIONS = demuxer_options()
_PICTURES = ("JPEG", "PNG", "WEBP")
_BUFFER_BYTES = 1 << 20
_SKIP_PER_PACKET = ("h264", "hevc")
"""Decoders that honor skip_frame per packet; dav1d reads it only once."""


@dataclass(frozen=True, kw_only=True)
class SampledFrames:
    """uint8 RGB frames and their frame rate."""

    frames_TCHW: NDArray[Any]
    fps: float


def sample_video(
    content: bytes,
    *,
    lengths: Sequence[int],
    rates: Sequence[float],
    size_for: Callable[[int, int], Size],
    crop: Crop,
    rng: random.Random,
    reader: Reader = "pyav",
    distinct: Distinct | None = None,
    margins: Margins = NO_MARGINS,
) -> SampledFrames:
    """Decode frames of an in-memory video, selected by `choose_frames`, upright and with square pixels.

    `margins` of the decoded frames are cut off. `size_for` maps the displayed (height, width) to the target size; the
    frame is scaled to cover it and cropped, randomly or at the center. Raises SampleError (too_short, decode_error,
    bad_field; too_large, too_long and timeout for this module's limits).
    """
    try:
        with _opened(content) as container:
            video = _Video(container, _footage_index(container, content), time.thread_time() + MAX_SAMPLE_S)
            choice = _choice(video.times_s, lengths, rates, rng, distinct)
            fit = Fit(video.pixel_aspect, size_for, crop, rng, video.bright_nits(), margins)
            if reader == "decord":
                pictures = _by_decord(content, video, choice.frame_indices, fit)
            else:
                pictures = _by_pyav(video, choice.frame_indices, fit)
    except av.FFmpegError as error:  # includes out-of-memory: damaged headers can request huge allocations
        raise SampleError("decode_error", f"FFmpeg could not read it: {error.strerror or error}") from error
    frames_TCHW = _stacked([pictures[index] for index in choice.frame_indices], fit.size)
    return SampledFrames(frames_TCHW=frames_TCHW, fps=choice.fps)


def _opened(content: bytes) -> Any:
    return av.open(io.BytesIO(content), options=_OPTIONS, buffer_size=_BUFFER_BYTES, metadata_errors="replace")


def _footage_index(container: Any, content: bytes) -> int:
    """Index of the stream with the footage; other tools' files also have covers, thumbnails and stills."""
    if len(container.streams) > MAX_STREAMS:
        raise SampleError("too_large", f"{len(container.streams):,} streams, more than {MAX_STREAMS}")
    videos = container.streams.video
    if len(videos) == 1 and not videos[0].disposition & Disposition.attached_pic:
        return int(videos[0].index)
    try:
        with _opened(content) as peeked:  # choosing may consume packets, which `container` must still return
            return int(candidate_streams(peeked)[0].index)
    except SourceError as error:
        raise SampleError("decode_error", error.message) from error


def _choice(
    times_s: Sequence[float],
    lengths: Sequence[int],
    rates: Sequence[float],
    rng: random.Random,
    distinct: Distinct | None,
) -> Choice:
    if distinct is not None and distinct.frames[-1] >= len(times_s):
        raise SampleError("bad_field", f"distinct frame {distinct.frames[-1]:,} of {len(times_s):,} frames")
    choice = choose_frames(times_s, lengths=lengths, rates=rates, rng=rng, distinct=distinct)
    if choice is None:
        wanted = " or ".join(f"{min(lengths)} frames at {rate:g}/s" for rate in sorted(rates))
        lasting_s = times_s[-1] - times_s[0] if times_s else 0.0
        raise SampleError("too_short", f"{len(times_s)} frames within {lasting_s:.2f} s, expected {wanted}")
    return choice


def sample_picture(
    content: bytes, *, size_for: Callable[[int, int], Size], crop: Crop, rng: random.Random
) -> NDArray[Any]:
    """Decode an in-memory JPEG, PNG or WebP to uint8 RGB (1, 3, H, W), sized as in `sample_video`. Raises SampleError
    (decode_error, too_large).
    """
    check_pixels(*_size_in_header(content), MAX_PIXELS)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB) if content else None
    if image is None:
        raise SampleError("decode_error", f"{len(content)} bytes that OpenCV cannot decode as an image")
    fit = Fit(Fraction(1), size_for, crop, rng)
    return _stacked([fit.array(image)], fit.size)


def _size_in_header(content: bytes) -> Size:
    """Read (height, width) from an image's header, before decoding any pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
            with Image.open(io.BytesIO(content), formats=_PICTURES) as picture:
                return picture.height, picture.width
    except Image.DecompressionBombError as error:
        raise SampleError("too_large", str(error)) from error
    except Exception as error:  # Pillow's parsers raise arbitrary exceptions on damaged headers
        raise SampleError("decode_error", f"{len(content)} bytes that are not {', '.join(_PICTURES)}") from error


def _stacked(pictures: Sequence[Planes], size: Size) -> NDArray[Any]:
    out_TCHW = np.empty((len(pictures), 3, *size), np.uint8)
    for out_CHW, planes in zip(out_TCHW, pictures, strict=True):
        for out_HW, plane_HW in zip(out_CHW, planes, strict=True):
            out_HW[:] = plane_HW
    return out_TCHW


class _Video:
    """An open video: all packets in decode order, and the frame timestamps in display order."""

    def __init__(self, container: Any, stream_index: int, ends_s: float) -> None:
        self.format, self._metadata, self._ends_s = container.format.name, container.metadata, ends_s
        self.stream = container.streams[stream_index]
        self.video_streams = len(container.streams.video)
        self.stream.thread_count = 1
        self.context = self.stream.codec_context
        if self.context is None:
            raise SampleError("decode_error", "FFmpeg has no decoder for the video stream")
        check_pixels(self.context.height, self.context.width, MAX_PIXELS)
        self.context.options = {"max_pixels": str(MAX_PIXELS)}
        self.context.flags |= Flags.unaligned  # crops at the left are exact
        self.packets = self._demuxed(container)
        shown = [packet.pts for packet in self.packets if packet.pts is not None and not packet.is_discard]
        self.pts = sorted(set(shown))
        base = float(self.stream.time_base)
        self.times_s = [pts * base for pts in self.pts]
        self.pixel_aspect = pixel_aspect(self.stream.sample_aspect_ratio)

    def _demuxed(self, container: Any) -> list[av.Packet]:
        packets: list[av.Packet] = []
        for packet in _packets(container, self.stream):
            if packet.size:
                packets.append(packet)
            self.check_time()
            if len(packets) > MAX_PACKETS:
                raise SampleError("too_long", f"more than {MAX_PACKETS:,} frames")
        return packets

    def bright_nits(self) -> float | None:
        """For HDR: from the clip's metadata, or measured on keyframes. None for SDR."""
        stated = stated_bright_nits(self._metadata)
        if stated is not None or int(self.context.color_trc) not in HDR_TRANSFERS:
            return stated
        return bright_nits_of_packets(self.context, self.packets)

    def orientation(self) -> Orientation:
        """The orientation of the first frame that can be decoded."""
        for packet in (*self.packets, None):
            for picture in self.context.decode(packet):
                return orientation_of(picture)
        raise SampleError("decode_error", "no frame could be decoded")

    def check_time(self) -> None:
        """Raise SampleError if the sample exceeds its time limit."""
        if time.thread_time() > self._ends_s:
            raise SampleError("timeout", f"reading took more than {MAX_SAMPLE_S:g} s of CPU time")


def _packets(container: Any, stream: Any) -> Iterator[av.Packet]:
    # Of a stream that the header does not list, PyAV raises IndexError at the end, after all packets of `stream`.
    with suppress(IndexError):
        yield from container.demux(stream)


def _by_pyav(video: _Video, frame_indices: Sequence[int], fit: Fit) -> dict[int, Planes]:
    """index -> frame, from the keyframe before the first one on; if frames are missing, from the first packet on."""
    index_of = {video.pts[index]: index for index in frame_indices}
    first, last = _needed(video, index_of)
    pictures: dict[int, Planes] = {}
    for start in dict.fromkeys((first, 0)):
        _check_count(last + 1 - start)
        pictures = _decode(video, start, last, index_of, fit)
        if len(pictures) == len(index_of):
            return pictures
        video.context.flush_buffers()
    raise SampleError("decode_error", f"{len(index_of) - len(pictures)} of {len(index_of)} frames cannot be decoded")


def _needed(video: _Video, chosen_pts: Collection[int]) -> tuple[int, int]:
    """Indices of the packets to decode, from the keyframe before the first selected frame to the last one."""
    first_pts = min(chosen_pts)
    last = max(i for i, packet in enumerate(video.packets) if packet.pts in chosen_pts)
    keys = [i for i, p in enumerate(video.packets) if p.is_keyframe and p.pts is not None and p.pts <= first_pts]
    return keys[-1] if keys else 0, last


def _check_count(frames: int) -> None:
    if frames > MAX_DECODED_FRAMES:
        raise SampleError(
            "too_long",
            f"{frames:,} frames from the keyframe to the last selected one, more than {MAX_DECODED_FRAMES:,}: encode "
            "it with more keyframes",
        )


def _decode(video: _Video, start: int, last: int, index_of: dict[int, int], fit: Fit) -> dict[int, Planes]:
    """Decode packets start..last only, and skip non-reference frames that were not selected."""
    pictures: dict[int, Planes] = {}
    orientation = UPRIGHT
    for packet in (*video.packets[start : last + 1], None):
        needed = packet is None or packet.pts in index_of or video.context.name not in _SKIP_PER_PACKET
        video.context.skip_frame = "DEFAULT" if needed else "NONREF"
        for picture in video.context.decode(packet):
            video.check_time()
            if picture.key_frame:  # where the codec states it, with keyframes alone
                orientation = orientation_of(picture)
            if picture.pts in index_of and not picture.is_corrupt:
                pictures[index_of[picture.pts]] = fit.frame(picture, orientation)
    return pictures


def _by_decord(content: bytes, video: _Video, frame_indices: Sequence[int], fit: Fit) -> dict[int, Planes]:
    """index -> frame, with decord, which rotates frames itself, but knows no mirroring, pixel aspect ratio or AV1."""
    import decord

    if int(video.context.color_trc) in HDR_TRANSFERS:
        raise SampleError("decode_error", "decord returns HDR video without tone mapping; use data.reader=pyav")
    if video.video_streams > 1:
        raise SampleError("decode_error", "decord may read another of several video streams; use data.reader=pyav")
    _check_for_decord(content, video, frame_indices)
    try:
        reader = decord.VideoReader(io.BytesIO(content), num_threads=1)
        if len(reader) != len(video.pts):
            raise SampleError("decode_error", f"decord counts {len(reader)} frames, FFmpeg {len(video.pts)}")
        wanted = sorted(set(frame_indices))
        frames = reader.get_batch(wanted).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise SampleError("decode_error", f"decord cannot read it: {str(error).strip().splitlines()[-1]}") from error
    orientation = video.orientation()
    if frames.shape[2:0:-1] != orientation.shown_size(video.context.width, video.context.height):
        raise SampleError("decode_error", f"decord crops to {frames.shape[1:3]}, unlike FFmpeg; use data.reader=pyav")
    if orientation.mirrored:  # decord's rotation is that of a display matrix, which flips bottom up then
        frames = frames[:, :, ::-1] if orientation.sideways else frames[:, ::-1]
    return {index: fit.array(frame, orientation) for index, frame in zip(wanted, frames, strict=True)}


def _check_for_decord(content: bytes, video: _Video, frame_indices: Sequence[int]) -> None:
    """Raise SampleError unless both FFmpeg and the first box say ISO-BMFF: decord's FFmpeg, of 2018, has no allow-list
    and would follow playlists."""
    box_bytes, brand = int.from_bytes(content[:4], "big"), content[8:12]
    is_mp4 = video.format == CONTAINERS[0] and content[4:8] == b"ftyp" and 16 <= box_bytes <= 4096
    if not (is_mp4 and brand.isascii() and brand.decode().isprintable()):
        raise SampleError("decode_error", "decord only reads MP4 that starts with an ftyp box; use data.reader=pyav")
    first, last = _needed(video, {video.pts[index] for index in frame_indices})
    _check_count(last + 1 - first)
    frames_bytes = 3 * video.context.height * video.context.width * len(set(frame_indices))
    if frames_bytes > _MAX_DECORD_BYTES:
        raise SampleError("too_large", f"the selected frames have {frames_bytes:,} bytes, over {_MAX_DECORD_BYTES:,}")
