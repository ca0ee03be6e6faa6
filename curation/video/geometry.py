"""How the frames of a stream are displayed: their orientation and pixel aspect, and where these change on the way."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from clipmill.cropping import NO_MARGINS, Margins
from clipmill.video import Orientation, orientation_of, pixel_aspect

_SILENT_CONTAINERS = ("mpegts", "mpeg", "flv")
"""Containers that state no pixel aspect of their own: the codec's counts, and changes in broadcasts."""
_CROPPING = re.compile(r"^ *Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+) *$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a decoded frame is displayed."""

    orientation: Orientation
    aspect: Fraction
    """Of its pixels."""

    def shown_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Width and height as displayed."""
        return self.orientation.shown_size(max(1, round(frame.width * self.aspect)), frame.height)


class GeometryWatch:
    """The geometry of each frame that a decoder outputs, asked for in that order."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._context = stream.codec_context
        self._aspect_changes = container.format.name in _SILENT_CONTAINERS
        self._aspect = pixel_aspect(stream.sample_aspect_ratio)
        self._geometry: Geometry | None = None

    def of(self, frame: av.VideoFrame) -> Geometry:
        """Changes at keyframes: an orientation stated by the codec comes with them alone, and the decoder's aspect may
        be some frames ahead, but not beyond the keyframe that brings the change."""
        if self._geometry is not None and not frame.key_frame:
            return self._geometry
        aspect = pixel_aspect(self._context.sample_aspect_ratio) if self._aspect_changes else self._aspect
        geometry = Geometry(orientation=orientation_of(frame), aspect=aspect)
        if geometry != self._geometry:
            self._geometry = geometry
        return self._geometry


def container_margins(container: Any, stream: Any) -> Margins:
    """What the container says is not to be shown: MP4's clean aperture, Matroska's PixelCrop.

    FFmpeg's libraries read it without applying it, and PyAV gives it only in the description that it logs.
    """
    found = _CROPPING.search(described(container, stream))
    if found is None:
        return NO_MARGINS
    left, right, top, bottom = (int(px) for px in found.groups())
    return Margins(left=left, top=top, right=right, bottom=bottom)


def described(container: Any, stream: Any) -> str:
    """What FFmpeg says of a stream now, in its own words: PyAV keeps what it read when the container was opened."""
    with _logging():
        description = container.dumps_format()
    of_stream = re.split(r"^ *Stream #0:(\d+)", description, flags=re.MULTILINE)
    texts = (text for index, text in zip(of_stream[1::2], of_stream[2::2], strict=True) if int(index) == stream.index)
    return next(texts, "")


@contextmanager
def _logging() -> Iterator[None]:
    av.logging.set_level(av.logging.INFO)
    try:
        yield
    finally:
        av.logging.set_level(None)
