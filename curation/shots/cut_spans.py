"""Detected transitions as frame ranges: merges fades, other gradual changes and hard cuts into one list."""

import bisect
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrameSpan:
    """From the first changed frame to the first frame of the next shot; equal for a hard cut."""

    kind: str
    start: int
    end: int
    blank: tuple[tuple[int, int], ...] = ()
    """Ranges within it that are blank for a long time."""

    def touches(self, start: int, end: int) -> bool:
        """Whether it overlaps or adjoins another range."""
        return start <= self.end and self.start <= end


def merged(fades: Iterable[FrameSpan], dissolves: Iterable[FrameSpan], cuts: Collection[int]) -> list[FrameSpan]:
    """All transitions in order, none touching another. Fades take precedence, since blank frames are unambiguous, then
    other gradual changes."""
    spans: list[FrameSpan] = []
    for fade in sorted(fades, key=_start):
        if spans and fade.start <= spans[-1].end:
            last = spans[-1]
            spans[-1] = FrameSpan(last.kind, last.start, max(fade.end, last.end), last.blank + fade.blank)
        else:
            spans.append(fade)
    for span in dissolves:
        if not _touches_any(spans, span):
            bisect.insort(spans, span, key=_start)
    hard = [cut for frame in cuts if not _touches_any(spans, cut := FrameSpan("hard", frame, frame))]
    return sorted(spans + hard, key=_start)


def _touches_any(spans: list[FrameSpan], span: FrameSpan) -> bool:
    """Whether any of `spans`, sorted and not touching each other, touches `span`: only its neighbours can."""
    place = bisect.bisect_left(spans, span.start, key=_start)
    return any(other.touches(span.start, span.end) for other in spans[max(0, place - 1) : place + 1])


def _start(span: FrameSpan) -> int:
    return span.start
