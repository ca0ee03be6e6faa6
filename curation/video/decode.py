"""Open a video safely, iterate its frames, read frames at given times. The only module that reads through PyAV.

Time is always pts times time base, never a frame index divided by a frame rate.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain, islice
from typing import Any, BinaryIO

import av
import numpy as np
from av.codec.context import Flags
from pydantic import Field

from clipmill.config import Config
from clipmill.cropping import Cropper
from clipmill.errors import SourceError, raise_if_stopped
from clipmill.hdr import SAMPLED_FRAMES, bright_nits
from clipmill.tracks import candidate_streams, check_size
from clipmill.video import (
    MAX_PIXELS,
    MAX_STREAMS,
)
from curation.video.alpha import OnBlack, alpha_decoder, has_alpha, stores_alpha
from curation.video.clock import LARGEST_PTS, MAX_LOOK_AHEAD, Clock, Tick
from curation.video.color import settle_matrix
from curation.video.container import OPTIONS, demuxed, open_container
from curation.video.geometry import Geometry, GeometryWatch, container_margins
from curation.video.info import VideoInfo, describe, too_long
from curation.video.packets import PacketIndex, Timestamps
from curation.video.scrambling import is_scrambled
from curation.video.stall import Watched
from curation.video.timed import Frame, between, matched, timed
from curation.video.unread import CodecWatch, why_unread

_WITHOUT_PTS = ("avi", "asf")
"""Containers with one timestamp per packet, which FFmpeg takes for a decoding time."""
_HELD_BYTES = 128 << 20
"""Memory for frames whose place on the time line depends on later ones."""
_GAP_S = 60.0
"""A longer interval between two frames is a still or a gap, and does not count towards `max_duration_s`."""


class Limits(Config):
    """Limits on the resources that one input may use. Videos are treated as hostile."""

    max_bytes: int = Field(64 << 30, gt=0)
    """Maximum file size. Larger files are rejected as `too_large`."""
    max_duration_s: float = Field(6 * 3600, gt=0)
    """Maximum duration. Longer videos are rejected as `too_long`."""
    max_pixels: int = Field(MAX_PIXELS, gt=0)
    """Maximum number of pixels per frame (width times height)."""
    max_streams: int = Field(MAX_STREAMS, gt=0)
    """Maximum number of streams in a container, including audio, subtitles and attachments."""
    timeout_s: float = Field(3600.0, gt=0, le=30 * 86400)
    """Wall-clock limit of the child process for one source, or for the clips of one source in a shard; it is killed
    after that. Raise it for long videos on slow machines."""
    memory_bytes: int = Field(4 << 30, ge=64 << 20)
    """Memory limit of the child process, including libraries; it cannot start with much less than 256 MiB."""
    spool_bytes: int = Field(1 << 30, ge=8 << 20)
    """Maximum size of the candidate thumbnails buffered in a temporary file until the clips are known; also the largest
    file that the child process may write, such as the copy of a video that is compressed in an archive or whose server
    has no range requests."""
    answer_bytes: int = Field(1 << 30, ge=1 << 20)
    """Maximum size of what the child process returns: rows and thumbnails of a scan, or a minute of clips for a
    shard."""
    stall_bytes: int = Field(512 << 20, ge=1 << 20)
    """Maximum number of bytes read without reaching a video frame; the rest of the file is skipped."""


class Video:
    """An open video. Use as a context manager; `frames()` can be iterated once, `frames_between()` repeatedly.

    Raises SourceError (not_video, unsupported_container, no_video_stream, too_large, too_long, decode_error).
    """

    stream: Any
    _decoding: Iterator[av.VideoFrame] | None
    _first: av.VideoFrame
    _geometry: Geometry
    """Of the frame that was decoded last."""
    _decoder: Any
    _alpha = False
    _last_info: VideoInfo | None = None
    _opaque_format = ""

    def __init__(self, file: BinaryIO, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        head = file.read(4096)
        file.seek(0)
        self._head, self._file = head, Watched(file, self._limits.stall_bytes)
        try:
            self._open(file)
        except SourceError as error:
            if error.kind == "decode_error" and is_scrambled(self._file):
                reason = "the transport stream is scrambled: descramble the file first"
                raise SourceError("encrypted", reason) from error
            raise

    def _open(self, file: BinaryIO) -> None:
        self._container = open_container(self._file, self._head)
        try:
            if len(self._container.streams) > self._limits.max_streams:
                streams = len(self._container.streams)
                raise SourceError("too_large", f"{streams} streams exceed the limit of {self._limits.max_streams}")
            self._start_first_of([stream.index for stream in candidate_streams(self._container)], file)
            self.info = describe(
                self._container, self.stream, self._first, self._geometry, max_duration_s=self._limits.max_duration_s
            )
            self.info = replace(self.info, margins=self._cropper.margins, alpha=self._alpha)
            if self.info.color.hdr:
                self.info = replace(self.info, bright_nits=self._bright_nits())
                self._rewind()
                self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self.packets = PacketIndex()
        self._decoding = self._decode_all(self.packets)
        self._first = self._decode_first(self._decoding)
        self._first_packet_dts = self.packets.first_dts

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def codec_context(self) -> Any:
        return self.stream.codec_context

    def demux(self, start_pts: int | None) -> Iterator[av.Packet]:
        """Data packets in decode order from the keyframe at or before `start_pts` on; None: from the first packet."""
        if start_pts is None or not self._seek(start_pts):
            self._rewind()
        for packet in demuxed(self._container, self.stream):
            if packet.size:
                yield packet

    def frames(self) -> Iterator[Frame]:
        """Every decodable frame in display order, once; fills `self.packets` along the way.

        A packet that cannot be decoded is recorded and skipped; a truncated stream ends the iteration, with the reason
        in `self.packets.ended_early`.
        """
        assert self._decoding is not None, "frames() comes first, and once"
        decoding, self._decoding = chain([self._first], self._decoding), None
        base = self.stream.time_base
        gap, most_footage = (math.floor(Fraction(limit_s) / base) for limit_s in (_GAP_S, self._limits.max_duration_s))
        last_pts, footage = None, 0  # in ticks: a Fraction takes microseconds, for every frame
        for index, (av_frame, info, tick) in enumerate(self._timed(decoding)):
            interval = tick.pts - last_pts if last_pts is not None else 0
            footage, last_pts = footage + (interval if interval <= gap else 0), tick.pts
            if footage > most_footage or tick.pts > LARGEST_PTS:
                raise too_long(footage * base, self._limits.max_duration_s)
            self.packets.rebuilt += tick.rebuilt
            yield Frame(index, tick.pts, av_frame, info, tick.joint)

    def frames_between(
        self,
        start_pts: int,
        end_pts: int,
        *,
        timestamps: Timestamps = "container",
        resume: Mapping[str, Any] | None = None,
        neighbors: bool = False,
    ) -> Iterator[Frame]:
        """Frames with start_pts <= pts < end_pts in display order; `index` counts from the first of them.

        Where the time line is the container's, decoding starts at the keyframe before; a rebuilt one is rebuilt from
        the start of the file, or taken from the column `resume` of a clip, whose timestamps the frames must have. With
        `neighbors`, the frames before and after come, too, if there are any.
        """
        if timestamps == "container" and self._seek(start_pts - neighbors):
            decoded = self._with_info(self._decode_all(PacketIndex()))
            stamped = ((frame.pts, frame, info) for frame, info in decoded if frame.pts is not None)
            frames = between(stamped, start_pts, end_pts, neighbors)
            head = list(islice(frames, 1))
            head += islice(frames, 1) if head and head[0].index < 0 else ()
            if head and head[-1].pts <= start_pts:  # or the seek landed too late: the container index is unreliable
                yield from chain(head, frames)
                return
        self._rewind()
        if resume is not None:
            decoded = self._with_info(self._decode_all(PacketIndex(), start=resume["packet"]))
            yield from between(matched(decoded, resume, end_pts), start_pts, end_pts, neighbors)
            return
        rebuilt = ((tick.pts, frame, info) for frame, info, tick in self._timed(self._decode_all(PacketIndex())))
        yield from between(rebuilt, start_pts, end_pts, neighbors)

    def _with_info(self, decoding: Iterable[av.VideoFrame]) -> Iterator[tuple[av.VideoFrame, VideoInfo]]:
        return ((av_frame, self._info_now) for av_frame in decoding)

    @property
    def _info_now(self) -> VideoInfo:
        """Of the frame that was decoded last."""
        now, last = self._geometry, self._last_info or self.info
        if (now.orientation, now.aspect) != (last.orientation, last.sample_aspect_ratio):
            last = replace(last, orientation=now.orientation, sample_aspect_ratio=now.aspect)
        self._last_info = last
        return last

    def _timed(self, decoding: Iterable[av.VideoFrame]) -> Iterator[tuple[av.VideoFrame, VideoInfo, Tick]]:
        stream, first = self.stream, self._first
        rate = stream.guessed_rate or stream.average_rate or Fraction(25)
        frame_bytes = max(1, sum(plane.buffer_size for plane in first.planes))
        clock = Clock(
            stream.time_base,
            usual_duration=round(1 / (rate * stream.time_base)),
            stores_pts=self._container.format.name not in _WITHOUT_PTS,
            first_dts=self._first_packet_dts,
            look_ahead=min(MAX_LOOK_AHEAD, _HELD_BYTES // frame_bytes),
        )
        return timed(self._with_info(decoding), clock)

    def _seek(self, pts: int) -> bool:
        """Go to the keyframe at or before `pts`; returns whether the container can."""
        self._decoding = None
        try:
            self._container.seek(pts, stream=self.stream, backward=True, any_frame=False)
        except av.FFmpegError:
            return False
        self._decoder.flush_buffers()
        return True

    def _rewind(self) -> None:
        """Go to the first packet, exactly: by opening the file anew, as seeking to the start may land later."""
        self._decoding = None
        index = self.stream.index
        self._container.close()
        self._file.seek(0)
        self._container = open_container(self._file, self._head)
        self._use_stream(index)

    def _use_stream(self, index: int) -> None:
        self.stream = self._container.streams[index]
        self._decoder = self.stream.codec_context
        if self._decoder is None:
            return
        self._alpha = stores_alpha(self.stream)
        if self._alpha:
            self._decoder = alpha_decoder(self.stream)
        self._decoder.thread_count = 1
        self._decoder.options = {"max_pixels": str(self._limits.max_pixels)}
        self._decoder.flags |= Flags.unaligned  # otherwise less than what is to be cropped at the left is
        self._cropper, self._on_black = Cropper(container_margins(self._container, self.stream)), OnBlack()
        self._watch = GeometryWatch(self._container, self.stream)

    def _start_first_of(self, stream_indices: Sequence[int], file: BinaryIO) -> None:
        """Start with the first of the streams of which a frame can be decoded."""
        first_error: SourceError | None = None
        for index in stream_indices:
            self._use_stream(index)
            try:
                check_size(self.stream, file, max_pixels=self._limits.max_pixels, options=OPTIONS)
                if len(self._container.streams.video) > 1:
                    self._rewind()  # their packets were counted
                self._start()
                return
            except SourceError as error:
                if error.kind != "decode_error":
                    raise
                first_error = first_error or error
        assert first_error is not None, "there is a stream"
        raise first_error

    def _bright_nits(self) -> float | None:
        """Measured on keyframes spread over the video, the same at every opening."""
        start_pts, duration_pts = self.stream.start_time or 0, int((self.info.duration_s or 0) / self.stream.time_base)
        frames = [self._first]
        for i in range(1, SAMPLED_FRAMES) if duration_pts else ():
            if self._seek(start_pts + duration_pts * i // SAMPLED_FRAMES):
                frames += islice(self._decode_all(PacketIndex()), 1)
        return bright_nits(frames)

    def _decode_first(self, decoding: Iterator[av.VideoFrame]) -> av.VideoFrame:
        for av_frame in decoding:
            return av_frame
        if self.packets.encrypted:
            raise SourceError("encrypted", "the video stream is encrypted: decrypt the file first")
        why = f" ({self.packets.ended_early})" if self.packets.ended_early else ""
        raise SourceError("decode_error", f"no frame of the {self.codec_context.name} stream could be decoded{why}")

    def _decode_all(self, seen: PacketIndex, *, start: int = 0) -> Iterator[av.VideoFrame]:
        """Every frame that the decoder outputs from here on, or from packet `start` on; fills `seen`.

        To start later, the decoder sees the first packets up to a frame, as only they may say how the stream is coded.
        """
        warm = False
        for packet in self._packets(seen):
            early = len(seen.pts) <= start
            if early and warm and packet.size:
                self._file.came_to_a_frame()
                continue
            if warm and not early:
                self._decoder.flush_buffers()
                warm = False
            try:
                for av_frame in self._decoder.decode(packet if packet.size else None):
                    self._file.came_to_a_frame()
                    self._geometry = self._watch.of(av_frame)
                    if early:
                        warm = True
                        continue
                    if av_frame.is_corrupt:
                        seen.add_damage(av_frame.pts)
                    seen.decoded += 1
                    yield self._shown(settle_matrix(av_frame))
            except MemoryError:
                raise
            except av.FFmpegError as error:  # of whatever code
                if isinstance(error, av.error.PermissionError) and self._decoder.name == "theora":
                    continue  # a header between frames, where recordings were joined
                self._assure_memory()
                stamp = packet.pts if packet.pts is not None else packet.dts
                if packet.size or stamp is not None:
                    seen.add_damage(stamp)
                else:
                    seen.ended_early = f"the decoder failed at the end of the stream: {error.strerror}"

    def _shown(self, av_frame: av.VideoFrame) -> av.VideoFrame:
        """The frame without what the container crops, and on black where it is transparent."""
        if self._cropper.margins:
            av_frame = self._cropper(av_frame)
        if av_frame.format.name == self._opaque_format:
            return av_frame
        if has_alpha(av_frame):
            self._alpha = True
            return self._on_black(av_frame)
        self._opaque_format = av_frame.format.name
        return av_frame

    def _packets(self, seen: PacketIndex) -> Iterator[av.Packet]:
        """Every packet, recorded in `seen` together with the reason if they end before the stream does."""
        packets, last_bytes = demuxed(self._container, self.stream), None
        watch = CodecWatch(self._container, self.stream)
        while True:
            try:
                packet = next(packets, None)
            except MemoryError:
                raise
            except av.FFmpegError as error:
                seen.ended_early = self._file.reason or f"reading stopped: {error.strerror or error}"
                return
            except OSError as error:  # an error of the disk or the store, not of the video
                raise_if_stopped(error)
                raise SourceError("unreadable", f"reading failed partway: {error}") from error
            if packet is None or not self._file.came_to_a_packet():
                early = self._file.reason or seen.ended_early
                seen.ended_early = early or why_unread(self._file, self._container.format.name, last_bytes)
                return
            if packet.size:
                if seen.pts and watch.changed_at(packet):
                    seen.ended_early = watch.sentence
                    yield av.Packet()  # the decoder outputs the frames that it holds back
                    return
                if packet.is_keyframe and packet.has_sidedata("encryption_info"):
                    seen.encrypted, seen.ended_early = True, "the stream is encrypted from there on"
                    return
                seen.first_dts = seen.first_dts if seen.pts else packet.dts
                seen.pts.append(packet.pts)
                seen.is_key.append(packet.is_keyframe)
                last_bytes = packet.pos
            yield packet

    def _assure_memory(self) -> None:
        """Raise MemoryError if two frames cannot be allocated: decoders report that as invalid data, too."""
        np.empty(2 * 4 * self.codec_context.width * self.codec_context.height, np.uint8)
