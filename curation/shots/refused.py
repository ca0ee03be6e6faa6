"""Proposed transitions that did not pass verification, with the reason, for whoever asks why there is no cut."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MOST_REFUSED = 1_000
"""Recorded per video; flickering footage has a proposal per frame."""
_COMPARED = 16


@dataclass(frozen=True, kw_only=True)
class RefusedCut:
    """A refused proposal."""

    kind: str
    """hard or dissolve (any gradual change)."""
    start_frame: int
    end_frame: int
    """Equal to start_frame for a hard cut."""
    reason: str


class FrameRange(Protocol):
    """Frames of a transition."""

    @property
    def start_frame(self) -> int: ...
    @property
    def end_frame(self) -> int: ...


class RefusedCuts:
    """Collects refused proposals, each once: searches overlap and propose gradual changes again."""

    def __init__(self) -> None:
        self._cuts: list[RefusedCut] = []

    def add(self, kind: str, start_frame: int, end_frame: int, reason: str) -> None:
        """Record a proposal, unless one of its kind at these frames is recorded or there are too many."""
        recent = self._cuts[-_COMPARED:]
        known = any(c.kind == kind and c.start_frame <= end_frame and start_frame <= c.end_frame for c in recent)
        if not known and len(self._cuts) < MOST_REFUSED:
            self._cuts.append(RefusedCut(kind=kind, start_frame=start_frame, end_frame=end_frame, reason=reason))

    def outside(self, transitions: Sequence[FrameRange]) -> list[RefusedCut]:
        """In the order of time, those that touch no transition. `transitions` are in order and do not overlap."""
        starts = [transition.start_frame for transition in transitions]

        def is_outside(cut: RefusedCut) -> bool:
            before = bisect.bisect_right(starts, cut.end_frame)
            return not before or transitions[before - 1].end_frame < cut.start_frame

        return sorted(filter(is_outside, self._cuts), key=lambda cut: (cut.start_frame, cut.end_frame))
