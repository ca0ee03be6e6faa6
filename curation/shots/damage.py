"""Where a stream cannot be trusted, and how that goes together with the transitions that were seen.

Time and memory are in proportion to the packets: a recording of six hours may have ten thousands of bad ones.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from curation.shots.cuts import Transition
from curation.shots.spans import Timeline
from curation.video.packets import PacketIndex

_MOST_DELAYED = 16
"""Frames that a decoder holds back to output them in order."""


def damage(timeline: Timeline, packets: PacketIndex) -> list[Transition]:
    """What cannot be trusted: from the last frame decoded before a bad packet to the next keyframe."""
    stretches = _by_order(timeline, packets) if packets.rebuilt else _by_pts(timeline, packets)
    return [
        Transition(
            kind="damage", start_frame=a, end_frame=b, start_pts=timeline.bound_pts(a), end_pts=timeline.bound_pts(b)
        )
        for a, b in _united(stretches)
    ]


def _by_pts(timeline: Timeline, packets: PacketIndex) -> list[tuple[int, int]]:
    key_pts = timeline.key_pts.tolist()
    stretches = []
    for bad, before in _decoded_before(packets).items():
        start = 0 if before is None else timeline.frame_at(before + 1)
        later_key = bisect_right(key_pts, bad)
        end = timeline.frame_at(key_pts[later_key]) if later_key < len(key_pts) else len(timeline.frame_pts)
        stretches.append((start, end))
    return stretches


def _by_order(timeline: Timeline, packets: PacketIndex) -> list[tuple[int, int]]:
    """The same where packets cannot be told by their timestamps: from the frame that the decoder output next on. The
    frames that it holds back were decoded before, so a keyframe among them is not the next."""
    keys = [timeline.frame_at(pts) for pts in timeline.key_pts.tolist()]
    stretches = []
    for start in packets.damaged_frames:
        later_key = bisect_right(keys, start + _MOST_DELAYED)
        stretches.append((start, keys[later_key] if later_key < len(keys) else len(timeline.frame_pts)))
    return stretches


def merge(seen: Sequence[Transition], certain: Sequence[Transition]) -> list[Transition]:
    """Both in order. What was seen where the stream is damaged or changes its size is an effect of that."""
    certain = sorted(certain, key=lambda t: (t.start_frame, t.end_frame))
    starts = [t.start_frame for t in certain]
    ends = list(accumulate((t.end_frame for t in certain), max))

    def overlaps(cut: Transition) -> bool:
        begun = bisect_right(starts, cut.end_frame)
        return begun > 0 and ends[begun - 1] >= cut.start_frame

    return sorted([*(s for s in seen if not overlaps(s)), *certain], key=lambda t: (t.start_frame, t.end_frame))


def _decoded_before(packets: PacketIndex) -> dict[int, int | None]:
    """For every bad pts the greatest one below it among the packets that were decoded before it; None without any.

    Of each pts its first packet counts. The packets are taken away from a linked list in order of pts, the last
    decoded first: those before the bad one in decode order are what is left when its turn comes.
    """
    decoded = list(dict.fromkeys(pts for pts in packets.pts if pts is not None))
    ordered = sorted(decoded)
    bad = set(packets.damaged_pts)
    before: dict[int, int | None] = {}
    for pts in bad.difference(decoded):
        place = bisect_left(ordered, pts)
        before[pts] = ordered[place - 1] if place else None
    lower: dict[int, int | None] = dict(zip(ordered, [None, *ordered], strict=False))
    higher: dict[int, int | None] = dict(zip(ordered, [*ordered[1:], None], strict=False))
    for pts in reversed(decoded):
        below, above = lower[pts], higher[pts]
        if pts in bad:
            before[pts] = below
        if below is not None:
            higher[below] = above
        if above is not None:
            lower[above] = below
    return before


def _united(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Frame ranges in order; those that touch are one."""
    united: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if united and start <= united[-1][1]:
            united[-1] = united[-1][0], max(end, united[-1][1])
        else:
            united.append((start, end))
    return united
