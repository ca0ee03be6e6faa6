"""Open a container by its content, and read the packets of a stream; no file that names others is opened."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import av

from clipmill.errors import SourceError, raise_if_stopped
from clipmill.magic import RAW_FORMATS, Content, content_of, described, is_segment, raw_format
from clipmill.video import CONTAINERS, demuxer_options

_MORE_CONTAINERS = ("gif", "apng", "ivf", "yuv4mpegpipe", "dv", "rm", "nut")
"""Read, but never written into shards."""
_AUDIO_CONTAINERS = ("mp3", "wav", "flac", "aac", "ac3", "aiff")
"""Opened only to report that they contain no video."""

OPTIONS = demuxer_options((*CONTAINERS, *_MORE_CONTAINERS, *_AUDIO_CONTAINERS))
_RAW_OPTIONS = demuxer_options((*CONTAINERS, *_MORE_CONTAINERS, *_AUDIO_CONTAINERS, *RAW_FORMATS))
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<?xml", b"<MPD", b"<SMIL", b"v=0\r", b"v=0\n")
_PICTURES = ("gif", "apng")
_READ_AHEAD_BYTES = 1 << 20


def open_container(file: Any, head: bytes) -> Any:
    """The open container of a file that begins with `head`. Raises SourceError."""
    if not head:
        raise SourceError("empty", "the file is empty")
    if sentence := described(head):
        raise SourceError("not_video", sentence)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_PLAYLISTS):
        raise SourceError("unsupported_container", "playlist or list of other files, not a video")
    content = content_of(head)
    if content == "animated_webp":
        raise SourceError(
            "unsupported_container", "animated WebP, which FFmpeg cannot decode; convert it to MP4 or GIF"
        )
    if content == "still":
        raise SourceError("not_video", "a still picture")
    try:
        container = _opened(file, content)
    except SourceError as error:
        if is_segment(head):
            reason = "a media segment alone: join the segments of the stream, the initialization segment first"
            raise SourceError("decode_error", reason) from error
        if content != "raw" or error.kind != "decode_error":
            raise
        file.seek(0)
        container = _opened(file, content, raw_format(head))  # which FFmpeg does not recognize, as HEVC of two views
    if container.format.name in _PICTURES:
        pictures = sum(1 for packet in islice(demuxed(container, container.streams[0]), 2) if packet.size)
        container.close()
        if pictures < 2:
            raise SourceError("not_video", f"a still picture: a {container.format.name.upper()} of one frame")
        file.seek(0)
        container = _opened(file, content)
    return container


def _opened(file: Any, content: Content | None, demuxer: str | None = None) -> Any:
    options = _RAW_OPTIONS if content == "raw" else OPTIONS
    try:
        return av.open(file, format=demuxer, options=options, buffer_size=_READ_AHEAD_BYTES, metadata_errors="replace")
    except av.error.ArgumentError as error:
        allowed = ", ".join(name.split(",")[0] for name in (*CONTAINERS, *_MORE_CONTAINERS))
        raise SourceError(
            "unsupported_container", f"container format not on the allow-list (allowed: {allowed})"
        ) from error
    except av.error.MemoryError:
        raise
    except (av.FFmpegError, ValueError) as error:
        if content:
            raise SourceError(
                "decode_error", f"the container is damaged or truncated; its index cannot be read: {_reason(error)}"
            ) from error
        raise SourceError("not_video", "the content is not a media file that FFmpeg recognizes") from error
    except OSError as error:
        raise_if_stopped(error)
        raise SourceError("unreadable", f"reading failed: {error}") from error


def demuxed(container: Any, stream: Any) -> Iterator[av.Packet]:
    """The packets of one stream, and an empty one at the end. Raises what PyAV's `demux` does."""
    # Where a stream has appeared that the header does not announce, PyAV looks for its last packets, too: after those
    # of `stream`, and among the streams that it knows.
    with suppress(IndexError):
        yield from container.demux(stream)


def _reason(error: Exception) -> str:
    """The error without numbers and paths."""
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")
