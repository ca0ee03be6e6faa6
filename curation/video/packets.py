"""What is known of the packets of a video stream that were read."""

from dataclasses import dataclass, field
from typing import Literal

Timestamps = Literal["container", "rebuilt"]
"""Whether all times of a source are the container's, or some had to be rebuilt."""


@dataclass(slots=True)
class PacketIndex:
    """The video packets read so far, in decode order. `pts` is None if the container gives none."""

    pts: list[int | None] = field(default_factory=list)
    first_dts: int | None = None
    is_key: list[bool] = field(default_factory=list)
    damaged_pts: list[int] = field(default_factory=list)
    """Timestamps of packets that the decoder rejected, and of frames it marked as corrupt."""
    damaged_frames: list[int] = field(default_factory=list)
    """For the same, in the same order: how many frames the decoder had output before."""
    decoded: int = 0
    """Number of frames that the decoder has output."""
    rebuilt: int = 0
    """Number of frames whose time is not the container's timestamp."""
    encrypted: bool = False
    ended_early: str | None = None
    """Why reading stopped before the end of the stream, if it did."""

    def add_damage(self, pts: int | None) -> None:
        self.damaged_frames.append(self.decoded)
        if pts is not None:
            self.damaged_pts.append(pts)
