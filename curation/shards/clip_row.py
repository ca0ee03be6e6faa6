"""A clip on its way into a shard: its row, its frames, their bars, its file."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from clipmill.cropping import Margins
from curation.shards.audio import audio_columns
from curation.video.fields import PROGRESSIVE, deinterlaced

if TYPE_CHECKING:
    from curation.video.decode import Video
    from curation.video.info import VideoInfo
    from curation.video.timed import Frame

ClipRow = Mapping[str, Any]
"""A row of the `clips` table; may include other columns of the joined view."""


@dataclass(frozen=True, kw_only=True)
class ExtractedClip:
    """The file of one clip, and its stream parameters."""

    content: bytes
    suffix: Literal["mp4", "jpg"]
    shape: dict[str, Any] = field(default_factory=dict)
    """codec, pixel_format, width, height, rotation, mirrored, sample_aspect_ratio as they are in the file; crop: what
    is still to be cut off at the left, top, right and bottom of each decoded frame."""
    pictures: list[dict[str, Any]] = field(default_factory=list)
    """The shape of each of several JPEGs that are joined in `content`, with its size as `bytes`; empty for one file."""
    audio: dict[str, Any] = field(default_factory=lambda: audio_columns(None))
    """present, codec, channels, rate as they are in the file; error_kind: why it has no sound, if it was to have
    one (`NoAudio`)."""

    def files(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Content and shape of each file."""
        if not self.pictures:
            yield self.content, self.shape
        end = 0
        for shape in self.pictures:
            start, end = end, end + shape["bytes"]
            yield self.content[start:end], {name: value for name, value in shape.items() if name != "bytes"}


def clip_bars(clip: ClipRow, info: "VideoInfo") -> Margins:
    """The bars of a clip in pixels of the decoded frame, from its row, where they are of the displayed one; even."""
    shown = Margins(**{side: clip[f"crop_{side}"] for side in ("left", "top", "right", "bottom")})
    bars, aspect = shown.of_decoded(info.orientation), info.sample_aspect_ratio
    left, right = (2 * math.ceil(px / aspect / 2 - Fraction(1, 4)) for px in (bars.left, bars.right))
    return Margins(left=left, top=bars.top, right=right, bottom=bars.bottom)


def clip_frames(video: "Video", clip: ClipRow, start_pts: int, end_pts: int) -> "Iterator[Frame]":
    """Frames with start_pts <= pts < end_pts without combs, and of interlaced footage the neighbours."""
    interlaced = clip["interlaced"] != PROGRESSIVE
    frames = video.frames_between(
        start_pts, end_pts, timestamps=clip["timestamps"], resume=clip["resume"], neighbors=interlaced
    )
    return deinterlaced(frames, clip["interlaced"])
