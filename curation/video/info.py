"""What a video is: codec, geometry, colour, rate and length, from its container and its first frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av

from clipmill.cropping import NO_MARGINS, Margins
from clipmill.errors import SourceError
from clipmill.video import Orientation
from curation.video.audio import AudioInfo, describe_audio
from curation.video.color import ColorTags
from curation.video.geometry import Geometry

_LEAST_BITS_PER_S = 20_000
"""If the stated duration implies fewer bits per second than this, the frames decide whether a video is too long."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Metadata from the container and the first frame. Sizes are displayed ones: rotation and pixel aspect applied."""

    container: str
    stream_index: int
    """Index of the video stream among all streams of the container."""
    other_video_streams: int
    codec: str
    pixel_format: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    orientation: Orientation
    """How a decoded frame becomes upright."""
    sample_aspect_ratio: Fraction
    fps: float | None
    """Average rate stated by the container; None if it states none."""
    duration_s: float | None
    time_base: Fraction
    audio: AudioInfo | None
    """The stream that goes with the footage."""
    margins: Margins = NO_MARGINS
    """What the container says is not to be shown, of frames as coded; frames come without it."""
    alpha: bool = False
    """Whether frames had an alpha channel as coded; they come on black."""
    color: ColorTags = field(default_factory=ColorTags)
    bright_nits: float | None = None
    """Of HDR: see `clipmill.hdr.bright_nits`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Container tags, unmodified: untrusted text."""


def describe(
    container: Any, stream: Any, first: av.VideoFrame, geometry: Geometry, *, max_duration_s: float
) -> VideoInfo:
    """What the container, a stream of it and its first frame say. Raises SourceError (too_long)."""
    width, height = geometry.shown_size(first)
    duration_s = None
    if stream.duration is not None:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration_s = container.duration / av.time_base
    most_s = 8 * container.size / _LEAST_BITS_PER_S if container.size > 0 else float("inf")
    if duration_s is not None and max_duration_s < duration_s <= most_s:
        raise too_long(duration_s, max_duration_s)
    return VideoInfo(
        container=container.format.name,
        stream_index=stream.index,
        other_video_streams=len(container.streams.video) - 1,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=stream.codec_context.pix_fmt or first.format.name,
        width=width,
        height=height,
        coded_width=first.width,
        coded_height=first.height,
        orientation=geometry.orientation,
        sample_aspect_ratio=geometry.aspect,
        fps=float(stream.average_rate) if stream.average_rate else None,
        duration_s=duration_s,
        time_base=stream.time_base,
        audio=describe_audio(container),
        color=ColorTags.of(first, int(stream.codec_context.colorspace)),
        metadata=dict(container.metadata),
    )


def too_long(seconds: Fraction | float, max_duration_s: float) -> SourceError:
    """The error of a video over the limit."""
    return SourceError("too_long", f"{float(seconds):.0f} s of video exceed the limit of {max_duration_s:.0f} s")
