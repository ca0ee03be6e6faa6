"""Damaged stretches and their union with what was seen, against a plain definition that takes quadratic time."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curation.shots.cuts import Transition
from curation.shots.damage import damage, merge
from curation.shots.spans import Timeline
from curation.video.packets import PacketIndex


def timeline(frame_pts: list[int], key_pts: list[int]) -> Timeline:
    return Timeline(
        time_base=Fraction(1, 25),
        frame_pts=np.array(frame_pts, np.int64),
        end_pts=frame_pts[-1] + 1,
        key_pts=np.array(key_pts, np.int64),
        packet_pts=np.array([], np.int64),
        remuxable=False,
    )


def transition(kind: str, start: int, end: int) -> Transition:
    return Transition(kind=kind, start_frame=start, end_frame=end, start_pts=start, end_pts=end)


def ranges(transitions: list[Transition]) -> list[tuple[int, int]]:
    return [(t.start_frame, t.end_frame) for t in transitions]


def damage_by_definition(time: Timeline, decode_order: list[int | None], bad: list[int]) -> list[tuple[int, int]]:
    stamped = [pts for pts in decode_order if pts is not None]
    damaged = np.zeros(len(time.frame_pts) + 1, bool)
    for pts in set(bad):
        earlier = stamped[: stamped.index(pts)] if pts in stamped else stamped
        before = [p for p in earlier if p < pts]
        start = time.frame_at(max(before) + 1) if before else 0
        keys = [key for key in time.key_pts if key > pts]
        end = time.frame_at(int(keys[0])) if keys else len(time.frame_pts)
        damaged[start:end] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], damaged[:-1], [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


PTS = st.integers(-20, 60)


@given(
    frames=st.lists(PTS, min_size=1, unique=True),
    decoded=st.lists(st.one_of(PTS, st.none())),
    bad=st.lists(PTS, max_size=12),
    keys=st.lists(PTS, unique=True),
)
def test_damage_reaches_from_the_frame_decoded_before_to_the_next_keyframe(
    frames: list[int], decoded: list[int | None], bad: list[int], keys: list[int]
):
    time = timeline(sorted(frames), sorted(keys))
    found = damage(time, PacketIndex(pts=decoded, is_key=[False] * len(decoded), damaged_pts=bad))
    assert [r for r in ranges(found) if r[0] < r[1]] == damage_by_definition(time, decoded, bad)
    assert all(a[1] < b[0] for a, b in zip(ranges(found), ranges(found)[1:], strict=False))


def test_reordered_packets_two_stretches_and_one_at_the_end():
    """Decode order I0 P3 B1 B2, I4 P7 B5 B6, ...: a bad B frame spoils up to the next keyframe from its own place."""
    order = [pts for i in range(0, 40, 4) for pts in (i, i + 3, i + 1, i + 2)]
    found = damage(timeline(list(range(40)), [0, 12, 24]), PacketIndex(pts=order, damaged_pts=[6, 30]))  # type: ignore[arg-type]
    assert ranges(found) == [(6, 12), (30, 40)]


SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), max_size=12)


@given(seen=SPANS, certain=SPANS)
def test_what_was_seen_beside_damage_stays_and_what_touches_it_goes(
    seen: list[tuple[int, int]], certain: list[tuple[int, int]]
):
    a = [transition("hard", start, start + length) for start, length in seen]
    b = [transition("damage", start, start + length) for start, length in certain]
    apart = [s for s in a if not any(c.start_frame <= s.end_frame and s.start_frame <= c.end_frame for c in b)]
    merged = merge(a, b)
    assert sorted(ranges(merged)) == ranges(merged)
    assert sorted(ranges([t for t in merged if t.kind == "hard"])) == sorted(ranges(apart))
    assert len(merged) == len(apart) + len(b)
