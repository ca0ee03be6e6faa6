"""Encode the frames of one clip: frame-exact, visually lossless, with its sound if it has any."""

import io
import math
import struct
from fractions import Fraction
from typing import Any

import av

from clipmill.cropping import NO_MARGINS
from clipmill.errors import SourceError
from curation.shards.audio import ClipAudio, NoAudio, audio_columns
from curation.shards.clip_row import ClipRow, ExtractedClip, clip_bars
from curation.shards.mux import mux, open_mp4
from curation.shards.resample import Resampler
from curation.video.display import DisplayTransform
from curation.video.timed import Frame

_RGB_GAIN = (1.36, 1.51, 1.17)
"""Mean squared error in RGB per error in Y, U and V: BT.709, limited range, the largest of the usual ones."""


class Encoder:
    """Frames of one clip in, an H.264 file out: 8-bit 4:2:0, upright, square pixels, a keyframe every second."""

    def __init__(
        self,
        clip: ClipRow,
        crf: int,
        preset: str,
        audio: ClipAudio | NoAudio | None = None,
        resampler: Resampler | None = None,
    ) -> None:
        self._clip, self._crf, self._preset = clip, crf, preset
        self._audio, self._resampler = audio, resampler
        self.psnr_db = math.inf
        """Of the worst frame, in luma or RGB, whichever is lower."""
        self._display: DisplayTransform | None = None
        self._file = io.BytesIO()
        self._sound = audio if isinstance(audio, ClipAudio) else None
        self._mp4 = open_mp4(self._file, clip, 0, audio_packets=len(self._sound.packets) if self._sound else 0)
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
        # The frame types chosen by the source's encoder must not affect ours.
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
            heard = self._sound.packets_of(self._sound.add_stream(self._mp4)) if self._sound else ()
            mux(self._mp4, self._stream, self._packets, self._clip, first_pts=0, unit=1, audio=heard)

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
        content = self._file.getvalue()
        return ExtractedClip(content=content, suffix="mp4", shape=shape, audio=audio_columns(self._audio))

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
            "flags": "+psnr",  # each packet carries its error
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
