"""Spans: closed-form cases for copy and division, and invariants over random timelines."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.cuts import Transition
from curation.spans import SpanConfig, Timeline, copied_packets, count_copied, plan_spans

FPS = 25


def timeline(frames: int, keys: list[int], *, packets: list[int] | None = None, copyable: bool = True) -> Timeline:
    return Timeline(
        time_base=Fraction(1, FPS),
        frame_pts=np.arange(frames),
        end_pts=frames,
        key_pts=np.array(keys),
        packet_pts=np.array(range(frames) if packets is None else packets),
        copyable=copyable,
    )


def hard(frame: int) -> Transition:
    return Transition(kind="hard", start_frame=frame, end_frame=frame, start_pts=frame, end_pts=frame)


def gradual(start: int, end: int, kind: str = "dissolve") -> Transition:
    return Transition(kind=kind, start_frame=start, end_frame=end, start_pts=start, end_pts=end)


def bounds(plan) -> list[tuple[int, int, str]]:
    return [(s.start_pts, s.end_pts, s.take) for s in plan.spans]


def test_a_cut_on_a_keyframe_copies_without_loss():
    plan = plan_spans(timeline(300, [0, 150]), [hard(150)])
    assert bounds(plan) == [(0, 150, "copy"), (150, 300, "copy")]
    assert plan.lost_keyframe_s == 0


def test_auto_copies_when_snapping_costs_little_and_encodes_otherwise():
    near = plan_spans(timeline(300, [0, 160]), [hard(150)])
    assert bounds(near) == [(0, 150, "copy"), (160, 300, "copy")]
    assert near.spans[1].cut_start_pts == 150
    assert near.lost_keyframe_s == pytest.approx(10 / FPS)
    far = plan_spans(timeline(300, [0, 170]), [hard(150)])
    assert bounds(far) == [(0, 150, "copy"), (150, 300, "encode")]
    assert far.lost_keyframe_s == 0


def test_copy_takes_keyframes_only_and_books_what_it_loses():
    plan = plan_spans(timeline(300, [0, 170]), [hard(100)], SpanConfig(take="copy"))
    assert bounds(plan) == [(0, 100, "copy"), (170, 300, "copy")]
    assert plan.lost_keyframe_s == pytest.approx(70 / FPS)
    nothing = plan_spans(timeline(300, [0]), [hard(100)], SpanConfig(take="copy"))
    assert bounds(nothing) == [(0, 100, "copy")]
    assert nothing.lost_keyframe_s == pytest.approx(200 / FPS)


def test_encode_is_exact_everywhere():
    plan = plan_spans(timeline(300, [0, 150]), [hard(151)], SpanConfig(take="encode"))
    assert bounds(plan) == [(0, 151, "encode"), (151, 300, "encode")]


def test_a_source_that_cannot_be_copied_is_encoded():
    plan = plan_spans(timeline(100, [0], copyable=False), [])
    assert bounds(plan) == [(0, 100, "encode")]


def test_a_gradual_transition_is_left_out_with_its_margin():
    plan = plan_spans(timeline(300, [0]), [gradual(100, 120)], SpanConfig(gradual_margin_s=2 / FPS))
    assert [(s.start_pts, s.end_pts) for s in plan.spans] == [(0, 98), (122, 300)]
    assert plan.lost_transition_s == pytest.approx(24 / FPS)


def test_damage_is_booked_apart_from_transitions():
    plan = plan_spans(timeline(300, [0]), [gradual(100, 200, "damage")], SpanConfig(gradual_margin_s=0))
    assert plan.lost_damage_s == pytest.approx(4.0)
    assert plan.lost_transition_s == 0


def test_a_long_shot_is_divided_at_keyframes_so_that_every_piece_copies():
    plan = plan_spans(timeline(60 * FPS, list(range(0, 60 * FPS, 130))), [])
    assert all(take == "copy" for _, _, take in bounds(plan))
    assert plan.clip_s == pytest.approx(60)
    assert max(s.end_pts - s.start_pts for s in plan.spans) <= 20 * FPS


def test_a_long_shot_without_keyframes_is_divided_evenly():
    plan = plan_spans(timeline(50 * FPS, [0]), [])
    assert [s.frames for s in plan.spans] == pytest.approx([1250 / 3] * 3, abs=1)
    assert plan.clip_s == pytest.approx(50)


def test_short_shots_are_left_out_and_booked():
    plan = plan_spans(timeline(100, [0]), [hard(40)])
    assert bounds(plan) == [(40, 100, "encode")]
    assert plan.lost_short_s == pytest.approx(40 / FPS)


# Decode order with B-frames, as an encoder writes it: anchor first, then the pictures shown before it.
B_FRAMES = [0, 4, 2, 1, 3, 8, 6, 5, 7, 12, 10, 9, 11]


@pytest.mark.parametrize(("end", "frames"), [(13, 13), (12, 9), (9, 9), (8, 5), (7, 5), (5, 5), (4, 1)])
def test_a_copy_ends_before_the_first_packet_beyond_the_cut(end: int, frames: int):
    line = timeline(13, [0], packets=B_FRAMES)
    assert count_copied(line, 0, end) == frames
    assert sorted(copied_packets(line.packet_pts, 0, end)[:frames]) == list(range(frames))


def test_pictures_that_lead_an_open_keyframe_are_left_out():
    packets = np.array([0, 3, 1, 2, 6, 4, 5, 9, 7, 8])  # 6 is a keyframe; 4 and 5 follow it but refer to 3
    assert copied_packets(packets, 6, 10).tolist() == [6, 9, 7, 8]


@pytest.mark.parametrize("packets", [[0, 1, 2, 2, 3], [0, 1, 1, 2, 3, 4]])
def test_packets_that_do_not_match_the_frames_are_not_copied(packets: list[int]):
    """An edit list leaves packets that show nothing, a coarse clock gives two packets one timestamp."""
    line = timeline(5, [0], packets=packets)
    assert count_copied(line, 0, 9) == 0
    assert bounds(plan_spans(line, [], SpanConfig(min_s=0.1))) == [(0, 5, "encode")]


def test_a_frame_that_stands_longer_than_a_clip_may_be_is_a_gap():
    line = Timeline(
        time_base=Fraction(1, FPS),
        frame_pts=np.array([*range(60), *range(2000, 2060)]),
        end_pts=2060,
        key_pts=np.array([0, 2000]),
        packet_pts=np.array([*range(60), *range(2000, 2060)]),
        copyable=True,
    )
    plan = plan_spans(line, [])
    assert bounds(plan) == [(0, 59, "copy"), (2000, 2060, "copy")]
    assert plan.lost_damage_s == pytest.approx((2000 - 59) / FPS)


def test_limits_that_cannot_divide_a_shot_are_refused():
    with pytest.raises(ValidationError, match="at least twice"):
        SpanConfig(min_s=11, max_s=20)


@st.composite
def situations(draw):
    frames = draw(st.integers(1, 900))
    steps = draw(st.lists(st.sampled_from([1, 1, 2, 3, 5, 5, 400]), min_size=frames, max_size=frames))
    pts = np.cumsum(steps) + draw(st.integers(-50, 50))
    keys = sorted(draw(st.sets(st.integers(0, frames - 1), max_size=12)) | {0})
    edges = sorted(draw(st.sets(st.integers(0, frames), max_size=10)))
    transitions, position = [], 0
    while position < len(edges):
        start = edges[position]
        wide = draw(st.booleans()) and position + 1 < len(edges)
        end = edges[position + 1] if wide else start
        if not wide and start in (0, frames):
            position += 1
            continue
        kind = draw(st.sampled_from(["black", "damage"])) if wide else "hard"
        end_pts = int(pts[end]) if end < frames else int(pts[-1]) + 2
        transitions.append(
            Transition(kind=kind, start_frame=start, end_frame=end, start_pts=int(pts[start]), end_pts=end_pts)
        )
        position += 2 if wide else 1
    gop = draw(st.sampled_from([1, 3, 4]))
    order = [0]
    for anchor in range(gop, frames + gop - 1, gop):
        order += [min(anchor, frames - 1), *range(anchor - gop + 1, min(anchor, frames - 1))]
    line = Timeline(
        time_base=Fraction(1, 50),
        frame_pts=pts,
        end_pts=int(pts[-1]) + 2,
        key_pts=pts[keys],
        packet_pts=pts[order] if draw(st.booleans()) else pts[:0],
        copyable=draw(st.booleans()),
    )
    take = draw(st.sampled_from(["auto", "copy", "encode"]))
    return line, transitions, SpanConfig(take=take, min_s=1.0, max_s=draw(st.sampled_from([2.0, 5.0])))


@settings(deadline=None)
@given(situations())
def test_spans_keep_their_promises(situation):
    line, transitions, config = situation
    plan = plan_spans(line, transitions, config)
    lost = plan.lost_transition_s + plan.lost_blank_s + plan.lost_damage_s + plan.lost_short_s + plan.lost_keyframe_s
    assert plan.clip_s + lost == pytest.approx(line.seconds(0, len(line.frame_pts)))
    last_end = None
    for span in plan.spans:
        assert span.cut_start_pts <= span.start_pts < span.end_pts <= span.cut_end_pts
        assert last_end is None or span.start_pts >= last_end
        last_end = span.end_pts
        length_s = float((span.end_pts - span.start_pts) * line.time_base)
        assert config.min_s <= length_s <= config.max_s + 0.1
        assert span.frames == line.frame_at(span.end_pts) - span.start_frame
        assert span.take == "encode" or span.start_pts in line.key_pts
        for t in transitions:
            assert span.end_pts <= t.start_pts or span.start_pts >= t.end_pts
        if span.take == "copy":
            shown = sorted(copied_packets(line.packet_pts, span.start_pts, span.end_pts))
            assert shown == line.frame_pts[span.start_frame : span.start_frame + span.frames].tolist()
