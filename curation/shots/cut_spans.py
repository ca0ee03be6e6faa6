"""The changes of shot that the detectors found, as frame ranges: fades, other gradual changes and cuts in one order."""

import bisect
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrameSpan:
    """From the first changed frame to the first of the next shot; both the same for a cut."""

    kind: str
    start: int
    end: int
    blank: tuple[tuple[int, int], ...] = ()
    """Ranges within it that show nothing for long."""

    def touches(self, start: int, end: int) -> bool:
        """Whether it shares a frame or a boundary with another range."""
        return start <= self.end and self.start <= end


def merged(fades: Iterable[FrameSpan], dissolves: Iterable[FrameSpan], cuts: Collection[int]) -> list[FrameSpan]:
    """Fades first, as a blank frame leaves no doubt, then what does not touch them; in order, and none touches."""
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
    """Of sorted spans that do not touch each other only the neighbours of a place can touch what is put there."""
    place = bisect.bisect_left(spans, span.start, key=_start)
    return any(other.touches(span.start, span.end) for other in spans[max(0, place - 1) : place + 1])


def _start(span: FrameSpan) -> int:
    return span.start
