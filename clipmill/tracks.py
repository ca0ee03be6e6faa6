"""Find the footage among a container's video streams: not a cover, thumbnails or the still of a motion photo."""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import av
from av.stream import Disposition

from clipmill.errors import SourceError

_PEEKED_PACKETS = 512
_SHARE_OF_FRAMES = 10
"""A stream with less than a tenth of the longest one's frames is a still, chapter images or thumbnails."""
_BESIDE_THE_FOOTAGE = (
    Disposition.timed_thumbnails
    | Disposition.still_image
    | Disposition.dependent
    | Disposition.comment
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.non_diegetic
    | Disposition.descriptions
    | Disposition.metadata
)


def candidate_streams(container: Any) -> list[Any]:
    """The streams that may be the footage, best first: the moving ones, of these the container's default, of several
    the one with the most pixels, as FFmpeg does; FFmpeg alone would take the still of a motion photo.

    A container with several streams of unknown length is read a little: seek before decoding. Raises SourceError
    (no_video_stream).
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise SourceError("no_video_stream", f"the file has {kinds} but no video stream")
    if len(streams) == 1:
        return streams
    frames = {s.index: s.frames for s in streams}
    if not all(frames.values()):
        frames = _peeked_frames(container, streams)
    most = max(frames.values())

    def preference(stream: Any) -> tuple[bool, bool, bool, bool, int]:
        context = stream.codec_context
        return (
            frames[stream.index] * _SHARE_OF_FRAMES >= most,
            not stream.disposition & _BESIDE_THE_FOOTAGE,
            context is not None,
            bool(stream.disposition & Disposition.default),
            context.width * context.height if context else 0,
        )

    ranked = sorted(streams, key=preference, reverse=True)
    return [stream for stream in ranked if preference(stream)[:2] == preference(ranked[0])[:2]]


def check_size(stream: Any, file: BinaryIO, *, max_pixels: int, options: Mapping[str, str]) -> None:
    """Raise SourceError for a stream without a decoder (decode_error) or with too large frames (too_large)."""
    context = stream.codec_context
    if context is None:
        raise SourceError("decode_error", "the video stream uses a codec that this FFmpeg build does not support")
    size = (context.width, context.height) if context.width else _refused_size(file, options)
    if size is None:
        raise SourceError("decode_error", f"the {context.name} stream does not state its frame size")
    if size[0] * size[1] > max_pixels:
        raise SourceError(
            "too_large", f"frames of {size[0]}x{size[1]} pixels exceed the limit of {max_pixels:,} pixels"
        )


def _refused_size(file: BinaryIO, options: Mapping[str, str]) -> tuple[int, int] | None:
    """The frame size that FFmpeg considers too large to allocate; it is only in FFmpeg's log."""
    file.seek(0)
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as messages, suppress(av.FFmpegError):
            av.open(file, options=dict(options), metadata_errors="replace").close()
    finally:
        av.logging.set_level(None)
    sizes = [re.search(r"Picture size (\d+)x(\d+) is invalid", text) for _, _, text in messages]
    return next(((int(m[1]), int(m[2])) for m in sizes if m), None)


def _peeked_frames(container: Any, streams: list[Any]) -> dict[int, int]:
    """Packets of each stream among the first of the file; 0 for an empty stream."""
    counted: Counter[int] = Counter()
    with suppress(av.FFmpegError, IndexError):
        for packet in container.demux(streams):
            counted[packet.stream_index] += bool(packet.size)
            if counted.total() >= _PEEKED_PACKETS:
                break
    return {stream.index: counted[stream.index] for stream in streams}
