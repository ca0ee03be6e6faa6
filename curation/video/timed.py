"""Decoded frames with their times: by the clock, or by the row of a clip; and those of a span."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import av

from curation.video.clock import Clock, Stamp, Tick

if TYPE_CHECKING:
    from curation.video.info import VideoInfo


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame: its index in display order, its pts on the time line of `clock.py`, and the av_frame."""

    index: int
    pts: int
    av_frame: av.VideoFrame
    info: "VideoInfo"
    """Of this frame: its geometry may differ from that of the first."""
    joint: bool = False
    """Whether another recording starts here, joined end to end."""


def timed(
    decoding: "Iterable[tuple[av.VideoFrame, VideoInfo]]", clock: Clock
) -> "Iterator[tuple[av.VideoFrame, VideoInfo, Tick]]":
    """Every frame with its geometry and its place on the time line."""
    held: deque[tuple[av.VideoFrame, VideoInfo]] = deque()
    for av_frame, info in decoding:
        held.append((av_frame, info))
        for tick in clock.push(Stamp(av_frame.pts, av_frame.dts, av_frame.duration or 0)):
            yield *held.popleft(), tick
    for tick in clock.finish():
        yield *held.popleft(), tick


def matched(
    decoding: "Iterable[tuple[av.VideoFrame, VideoInfo]]", resume: Mapping[str, Any], end_pts: int
) -> "Iterator[tuple[int, av.VideoFrame, VideoInfo]]":
    """The frames of a clip by the column `resume` of its row, as far as they have the timestamps listed there, and the
    frames before and after them. Joined recordings may have the same timestamps: so many frames come before.
    """
    stamps, times_pts = resume["stamps"], resume["pts"]
    if not 0 < len(stamps) == len(times_pts):
        return
    found, before = 0, None
    for place, (av_frame, info) in enumerate(decoding):
        if found == 0 and (place < resume["frames"] or av_frame.pts != stamps[0]):
            before = av_frame, info
            continue
        if found == 0 and before is not None:
            yield times_pts[0] - 1, *before
        if found == len(stamps):
            yield max(end_pts, times_pts[-1] + 1), av_frame, info
            return
        if av_frame.pts != stamps[found]:
            return
        yield times_pts[found], av_frame, info
        found += 1


def between(
    frames: "Iterable[tuple[int, av.VideoFrame, VideoInfo]]", start_pts: int, end_pts: int, neighbors: bool
) -> Iterator[Frame]:
    """Those with start_pts <= pts < end_pts; with `neighbors`, the ones before (index -1) and after, too."""
    index, last_pts, before = 0, start_pts - 1, None
    for pts, av_frame, info in frames:
        if pts < start_pts:
            before = Frame(-1, pts, av_frame, info)
        if pts <= last_pts:
            continue
        if index == 0 and neighbors and before is not None:
            yield before
        if pts < end_pts or neighbors:
            yield Frame(index, pts, av_frame, info)
        if pts >= end_pts:
            return
        index, last_pts = index + 1, pts
