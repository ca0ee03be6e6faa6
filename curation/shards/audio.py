"""The sound of clips: decoded from the start of the clip to its end, exactly to the sample, and encoded as AAC.

Packets of a source cannot be cut at the start of a clip: their boundaries lie elsewhere.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.codec.context import Flags
from numpy.typing import NDArray

from clipmill.errors import SourceError
from curation.video.audio import AudioInfo, audio_stream, describe_audio
from curation.video.container import demuxed, open_container

CODEC = "aac"
_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
"""Sample rates of the encoder in Hz; sound at others is resampled to 48 kHz."""
_LAYOUTS = {1: "mono", 6: "5.1"}
"""Channel layouts that are kept; others become stereo."""
_BITS_PER_S_AND_CHANNEL = 96_000
_PREROLL_S = Fraction(1, 2)
"""Decoded before a clip: decoders need earlier packets for its first samples."""
_TOLERANCE_S = Fraction(1, 25)
"""A timestamp this close to the end of the samples before it continues them: containers round timestamps."""
_INTERLEAVED_S = 10
"""Reading stops this long after a clip, by the timestamps of the video."""
_ENCODED_SAMPLES = 1024

Samples = NDArray[Any]
"""float32 (channels, samples)."""


class NoAudio(Exception):
    """Why a clip has no sound. Kinds: no_audio (in the source), no_audio_in_clip, unsupported_codec, decode_error, and
    rebuilt_timestamps of the video, with which sound cannot be aligned."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class ClipAudio:
    """The sound of a clip, encoded; its first sample belongs to the start of the first frame."""

    info: AudioInfo
    """Of the source."""
    rate_hz: int
    layout: str
    packets: Sequence[tuple[bytes, int, int]]
    """Content, timestamp and duration in samples."""

    def add_stream(self, mp4: Any) -> Any:
        """An audio stream for the packets in an MP4 without header."""
        stream = mp4.add_stream(CODEC, rate=self.rate_hz)
        _set_up(stream.codec_context, self.rate_hz, self.layout)
        return stream

    def packets_of(self, stream: Any) -> Iterator[av.Packet]:
        """The packets for this stream."""
        for content, pts, duration in self.packets:
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, self.rate_hz)
            packet.pts = packet.dts = pts
            packet.duration = duration
            yield packet

    @property
    def channels(self) -> int:
        return int(av.AudioLayout(self.layout).nb_channels)


def read_audio(file: BinaryIO, clips: Iterable[Mapping[str, Any]]) -> dict[str, ClipAudio | NoAudio]:
    """clip_id -> the sound of each of these clips of a source, or why it has none (`NoAudio.kind`).

    The position in the file is undefined afterwards.
    """
    found: dict[str, ClipAudio | NoAudio] = {}
    for clip in sorted(clips, key=lambda clip: clip["start_pts"]):
        try:
            found[clip["clip_id"]] = _read(file, clip)
        except NoAudio as missing:
            found[clip["clip_id"]] = missing
        except (SourceError, av.FFmpegError, ValueError) as error:
            if isinstance(error, MemoryError):
                raise
            found[clip["clip_id"]] = NoAudio("decode_error")
    return found


def audio_columns(audio: "ClipAudio | NoAudio | None") -> dict[str, Any]:
    """The sound of a file as described in the sample's JSON, with the same keys in every sample."""
    if isinstance(audio, ClipAudio):
        return {"present": True, "codec": CODEC, "channels": audio.channels, "rate": audio.rate_hz, "error_kind": ""}
    return {"present": False, "codec": "", "channels": 0, "rate": 0, "error_kind": audio.kind if audio else ""}


def _read(file: BinaryIO, clip: Mapping[str, Any]) -> ClipAudio:
    if clip["timestamps"] == "rebuilt":
        raise NoAudio("rebuilt_timestamps")
    base = Fraction(clip["time_base_num"], clip["time_base_den"])
    start_s, end_s = clip["start_pts"] * base, clip["end_pts"] * base
    for seek in (True, False):  # the second for an index that leads behind the start of the clip
        file.seek(0)
        head = file.read(4096)
        file.seek(0)
        with open_container(file, head) as container:
            stream, info = audio_stream(container), describe_audio(container)
            if stream is None or info is None:
                raise NoAudio("no_audio")
            if stream.codec_context is None:
                raise NoAudio("unsupported_codec")
            if seek and not _seek(container, stream, start_s - _PREROLL_S):
                continue
            encoder = _Encoder(stream.codec_context, start_s, end_s)
            first_s = None
            for frame, at_s in _frames(container, stream, end_s):
                if first_s is None:
                    first_s = at_s
                    if seek and _landed_late(stream, at_s, start_s):
                        break
                encoder.push(frame, at_s)
            else:
                return encoder.result(info)
    raise AssertionError("without seeking, all frames are read")


def _seek(container: Any, stream: Any, at_s: Fraction) -> bool:
    try:
        container.seek(int(at_s / stream.time_base), stream=stream, backward=True)
    except av.FFmpegError:
        return False
    return True


def _landed_late(stream: Any, first_s: Fraction, start_s: Fraction) -> bool:
    """Whether the first frame after seeking lies after the start of the clip, though the stream starts before it."""
    starts_s = None if stream.start_time is None else stream.start_time * stream.time_base
    return first_s > start_s and (starts_s is None or first_s > starts_s + _TOLERANCE_S)


def _frames(container: Any, stream: Any, end_s: Fraction) -> Iterator[tuple[av.AudioFrame, Fraction]]:
    """Decoded frames that begin before `end_s`, with their times; damaged packets are skipped."""
    streams = [stream, *container.streams.video]
    next_s: Fraction | None = None
    for packet in demuxed(container, streams):
        if packet.stream_index != stream.index:
            if packet.dts is not None and packet.dts * packet.time_base > end_s + _INTERLEAVED_S:
                return
            continue
        try:
            frames = stream.codec_context.decode(packet if packet.size else None)
        except (av.error.InvalidDataError, av.error.EOFError):
            continue
        for frame in frames:
            at_s = frame.pts * frame.time_base if frame.pts is not None else next_s
            if at_s is None or not frame.samples or not frame.sample_rate:
                continue
            if at_s >= end_s:
                return
            yield frame, at_s
            next_s = at_s + Fraction(frame.samples, frame.sample_rate)


def _set_up(context: Any, rate_hz: int, layout: str) -> None:
    context.sample_rate, context.layout, context.format = rate_hz, layout, "fltp"
    context.bit_rate = _BITS_PER_S_AND_CHANNEL * av.AudioLayout(layout).nb_channels
    context.time_base = Fraction(1, rate_hz)
    context.flags |= Flags.bitexact | Flags.global_header


class _Encoder:
    """Encodes decoded frames from `start_s` to `end_s`, with silence in the gaps."""

    def __init__(self, decoder: Any, start_s: Fraction, end_s: Fraction) -> None:
        self._start_s = start_s
        self._rate_hz = decoder.sample_rate if decoder.sample_rate in _RATES else 48_000
        self._layout = _LAYOUTS.get(decoder.channels, "stereo")
        self._channels = av.AudioLayout(self._layout).nb_channels
        self._samples = round((end_s - start_s) * self._rate_hz)
        self._tolerance = round(_TOLERANCE_S * self._rate_hz)
        self._context: Any = av.CodecContext.create(CODEC, "w")
        _set_up(self._context, self._rate_hz, self._layout)
        self._packets: list[tuple[bytes, int, int]] = []
        self._waiting: list[Samples] = []
        self._waiting_samples = self._encoded = self._heard = 0
        self._next: int | None = None
        """Position of the next decoded sample, in samples from the start."""
        self._kind: tuple[Any, ...] = ()
        self._resampler: AudioResampler | None = None

    def push(self, frame: av.AudioFrame, at_s: Fraction) -> None:
        """Take a decoded frame: after the samples before it, unless its time says otherwise."""
        place = round((at_s - self._start_s) * self._rate_hz)
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind or self._next is None or abs(place - self._next) > self._tolerance:
            self._flush_resampler()
            self._kind, self._next = kind, place
            self._resampler = AudioResampler(format="fltp", layout=self._layout, rate=self._rate_hz)
        assert self._resampler is not None
        frame.pts = None
        for resampled in self._resampler.resample(frame):
            self._place(resampled.to_ndarray())

    def result(self, info: AudioInfo) -> ClipAudio:
        """The whole sound. Raises NoAudio if no frame lies within the clip."""
        self._flush_resampler()
        if not self._heard:
            raise NoAudio("no_audio_in_clip")
        self._append(np.zeros((self._channels, self._samples - self._written), np.float32))
        self._encode(all_of_it=True)
        self._keep(self._context.encode(None))
        return ClipAudio(info=info, rate_hz=self._rate_hz, layout=self._layout, packets=self._packets)

    @property
    def _written(self) -> int:
        return self._encoded + self._waiting_samples

    def _flush_resampler(self) -> None:
        if self._resampler is not None:
            for resampled in self._resampler.resample(None):
                self._place(resampled.to_ndarray())
        self._resampler = None

    def _place(self, samples: Samples) -> None:
        assert self._next is not None
        start, self._next = self._next, self._next + samples.shape[1]
        if start > self._written:
            self._append(np.zeros((self._channels, min(start, self._samples) - self._written), np.float32))
        inside = samples[:, max(0, self._written - start) : max(0, self._samples - start)]
        self._heard += inside.shape[1]
        self._append(inside)
        self._encode()

    def _append(self, samples: Samples) -> None:
        if samples.shape[1]:
            self._waiting.append(samples)
            self._waiting_samples += samples.shape[1]

    def _encode(self, *, all_of_it: bool = False) -> None:
        if self._waiting_samples < _ENCODED_SAMPLES and not all_of_it:
            return
        waiting = np.concatenate(self._waiting, axis=1) if self._waiting else np.zeros((self._channels, 0), np.float32)
        while waiting.shape[1] >= (1 if all_of_it else _ENCODED_SAMPLES):
            block, waiting = waiting[:, :_ENCODED_SAMPLES], waiting[:, _ENCODED_SAMPLES:]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate_hz, self._encoded, Fraction(1, self._rate_hz)
            self._keep(self._context.encode(frame))
            self._encoded += block.shape[1]
        self._waiting, self._waiting_samples = [waiting], waiting.shape[1]

    def _keep(self, packets: Sequence[av.Packet]) -> None:
        self._packets += [(bytes(p), int(p.pts or 0), int(p.duration or _ENCODED_SAMPLES)) for p in packets if p.size]
