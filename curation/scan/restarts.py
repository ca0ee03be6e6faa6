"""Where decoding can start within a source whose timestamps were rebuilt, and how its frames are told there.

A rebuilt time line depends on every frame before, and seeking goes by the very timestamps that are wrong. So a clip's
row keeps the place of a keyframe in the order of packets, and both timestamps of each frame.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from curation.shots.spans import Span, Timeline
from curation.video.packets import PacketIndex

NO_PTS = -(1 << 63)
"""FFmpeg's value for a missing timestamp."""


class Restarts:
    """The keyframes of a source by frame and by packet. `stamps` are the container's timestamps of all frames."""

    def __init__(self, timeline: Timeline, packets: PacketIndex, stamps: Sequence[int]) -> None:
        self._timeline, self._stamps = timeline, stamps
        key_packets: dict[int | None, list[int]] = defaultdict(list)
        for place, (pts, is_key) in enumerate(zip(packets.pts, packets.is_key, strict=True)):
            if is_key:
                key_packets[pts].append(place)
        self._frames: list[int] = []
        self._packets: list[int] = []
        for frame in map(timeline.frame_at, timeline.key_pts.tolist()):
            places = key_packets.get(stamps[frame], [])
            later = bisect_left(places, self._packets[-1] + 1 if self._packets else 0)
            if later < len(places):  # of joined recordings each may have a packet with this timestamp
                self._frames.append(frame)
                self._packets.append(places[later])

    def of(self, span: Span) -> dict[str, Any] | None:
        """The column `resume` of a clip; None if its frames cannot be told by their timestamps."""
        first, last = span.start_frame, span.start_frame + span.frames
        stamps = list(self._stamps[first:last])
        before = bisect_left(self._frames, first)  # strictly before: the frame before the clip is decoded, too
        if NO_PTS in stamps or not before:
            return None
        return {
            "packet": self._packets[before - 1],
            "frames": first - self._frames[before - 1],
            "stamps": stamps,
            "pts": self._timeline.frame_pts[first:last].tolist(),
        }
