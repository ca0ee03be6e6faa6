"""Spans: closed-form cases for remuxing and division, and invariants over random timelines."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.shots.cuts import Transition
from curation.shots.spans import SpanConfig, Timeline, count_remuxed, plan_spans, remuxed_packets

FPS = 25


def timeline(frames: int, keys: list[int], *, packets: list[int] | None = None, remuxable: bool = True) -> Timeline:
    return Timeline(
        time_base=Fraction(1, FPS),
        frame_pts=np.arange(frames),
        end_pts=frames,
        key_pts=np.array(keys),
        packet_pts=np.array(range(frames) if packets is None else packets),
        remuxable=remuxable,
    )


def hard(frame: int) -> Transition:
    return Transition(kind="hard", start_frame=frame, end_frame=frame, start_pts=frame, end_pts=frame)


def gradual(start: int, end: int, kind: str = "dissolve") -> Transition:
    return Transition(kind=kind, start_frame=start, end_frame=end, start_pts=start, end_pts=end)


def black(start: int, end: int, *blank: tuple[int, int]) -> Transition:
    return Transition(kind="black", start_frame=start, end_frame=end, start_pts=start, end_pts=end, blank=blank)


def bounds(plan) -> list[tuple[int, int, str]]:
    return [(s.start_pts, s.end_pts, s.extraction) for s in plan.spans]


def test_a_cut_on_a_keyframe_copies_without_loss():
    plan = plan_spans(timeline(300, [0, 150]), [hard(150)])
    assert bounds(plan) == [(0, 150, "remux"), (150, 300, "remux")]
    assert plan.lost_keyframe_s == 0


def test_auto_copies_when_snapping_costs_little_and_encodes_otherwise():
    near = plan_spans(timeline(300, [0, 160]), [hard(150)])
    assert bounds(near) == [(0, 150, "remux"), (160, 300, "remux")]
    assert near.spans[1].cut_start_pts == 150
    assert near.lost_keyframe_s == pytest.approx(10 / FPS)
    far = plan_spans(timeline(300, [0, 170]), [hard(150)])
    assert bounds(far) == [(0, 150, "remux"), (150, 300, "transcode")]
    assert far.lost_keyframe_s == 0


def test_remuxing_keeps_keyframe_bounds_only_and_books_what_it_loses():
    plan = plan_spans(timeline(300, [0, 170]), [hard(100)], SpanConfig(extraction="remux"))
    assert bounds(plan) == [(0, 100, "remux"), (170, 300, "remux")]
    assert plan.lost_keyframe_s == pytest.approx(70 / FPS)
    nothing = plan_spans(timeline(300, [0]), [hard(100)], SpanConfig(extraction="remux"))
    assert bounds(nothing) == [(0, 100, "remux")]
    assert nothing.lost_keyframe_s == pytest.approx(200 / FPS)


def test_transcoding_is_exact_everywhere():
    plan = plan_spans(timeline(300, [0, 150]), [hard(151)], SpanConfig(extraction="transcode"))
    assert bounds(plan) == [(0, 151, "transcode"), (151, 300, "transcode")]


def test_a_source_that_cannot_be_remuxed_is_transcoded():
    plan = plan_spans(timeline(100, [0], remuxable=False), [])
    assert bounds(plan) == [(0, 100, "transcode")]


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
    assert all(extraction == "remux" for _, _, extraction in bounds(plan))
    assert plan.clip_s == pytest.approx(60)
    assert max(s.end_pts - s.start_pts for s in plan.spans) <= 20 * FPS


def test_a_long_shot_without_keyframes_is_divided_evenly():
    plan = plan_spans(timeline(50 * FPS, [0]), [])
    assert [s.frames for s in plan.spans] == pytest.approx([1250 / 3] * 3, abs=1)
    assert plan.clip_s == pytest.approx(50)


def test_short_shots_are_left_out_and_booked():
    plan = plan_spans(timeline(100, [0]), [hard(40)])
    assert bounds(plan) == [(40, 100, "transcode")]
    assert plan.lost_short_s == pytest.approx(40 / FPS)


# Decode order with B-frames, as an encoder writes it: anchor first, then the pictures shown before it.
B_FRAMES = [0, 4, 2, 1, 3, 8, 6, 5, 7, 12, 10, 9, 11]


@pytest.mark.parametrize(("end", "frames"), [(13, 13), (12, 9), (9, 9), (8, 5), (7, 5), (5, 5), (4, 1)])
def test_a_copy_ends_before_the_first_packet_beyond_the_cut(end: int, frames: int):
    line = timeline(13, [0], packets=B_FRAMES)
    assert count_remuxed(line, 0, end) == frames
    assert sorted(remuxed_packets(line.packet_pts, 0, end)[:frames]) == list(range(frames))


def test_a_remux_ends_before_a_frame_that_is_stored_beyond_the_cut():
    """Frame 2 comes after 5 in decode order, so it is not copied, and neither is 3, which is shown after the gap."""
    assert count_remuxed(timeline(6, [0], packets=[0, 3, 1, 5, 2, 4]), 0, 5) == 1


def test_pictures_that_lead_an_open_keyframe_are_left_out():
    packets = np.array([0, 3, 1, 2, 6, 4, 5, 9, 7, 8])  # 6 is a keyframe; 4 and 5 follow it but refer to 3
    assert remuxed_packets(packets, 6, 10).tolist() == [6, 9, 7, 8]


@pytest.mark.parametrize("packets", [[0, 1, 2, 2, 3], [0, 1, 1, 2, 3, 4]])
def test_packets_that_do_not_match_the_frames_are_not_copied(packets: list[int]):
    """An edit list leaves packets that show nothing, a coarse clock gives two packets one timestamp."""
    line = timeline(5, [0], packets=packets)
    assert count_remuxed(line, 0, 9) == 0
    assert bounds(plan_spans(line, [], SpanConfig(min_s=0.1))) == [(0, 5, "transcode")]


@pytest.mark.parametrize("holds", [True, False])
def test_a_frame_that_stands_for_long_is_a_still_or_a_gap(holds: bool):
    line = Timeline(
        holds=holds,
        time_base=Fraction(1, FPS),
        frame_pts=np.array([*range(60), *range(2000, 2060)]),
        end_pts=2060,
        key_pts=np.array([0, 2000]),
        packet_pts=np.array([*range(60), *range(2000, 2060)]),
        remuxable=True,
    )
    plan = plan_spans(line, [])
    assert bounds(plan) == [(0, 59, "remux"), (2000, 2060, "remux")]
    assert (plan.lost_still_s, plan.lost_damage_s)[:: 1 if holds else -1] == (pytest.approx((2000 - 59) / FPS), 0)


def uneven(pts: list[int], end: int, keys: list[int] | None = None) -> Timeline:
    return Timeline(
        time_base=Fraction(1, FPS),
        frame_pts=np.array(pts),
        end_pts=end,
        key_pts=np.array(pts[:1] if keys is None else keys),
        packet_pts=np.array(pts),
        remuxable=keys is not None,
    )


def test_a_clip_of_exactly_the_least_length_is_kept():
    plan = plan_spans(timeline(149, [0, 50, 100]), [hard(50), hard(100)])
    assert bounds(plan) == [(0, 50, "remux"), (50, 100, "remux")]
    assert plan.lost_short_s == pytest.approx(49 / FPS)
    assert bounds(plan_spans(timeline(50, [0], remuxable=False), [])) == [(0, 50, "transcode")]


def test_a_copy_may_cost_exactly_the_loss_and_leave_exactly_the_least_length():
    near = plan_spans(timeline(150, [25]), [], SpanConfig(remux_loss_s=1.0))
    assert bounds(near) == [(25, 150, "remux")]
    far = plan_spans(timeline(150, [26]), [], SpanConfig(remux_loss_s=1.0))
    assert bounds(far) == [(0, 150, "transcode")]
    least = plan_spans(timeline(75, [25]), [], SpanConfig(remux_loss_s=1.0))
    assert bounds(least) == [(25, 75, "remux")]
    too_short = plan_spans(timeline(75, [26]), [], SpanConfig(remux_loss_s=2.0))
    assert bounds(too_short) == [(0, 75, "transcode")]


def test_what_is_lost_adds_up_by_kind():
    """Two of each kind: blank footage within black passages, damage, short shots, and footage before keyframes."""
    transitions = [
        black(100, 150, (90, 130), (140, 145)),
        gradual(250, 260, "damage"),
        hard(280),
        hard(300),
        black(400, 450, (430, 470)),
        gradual(550, 570, "damage"),
    ]
    config = SpanConfig(extraction="remux", gradual_margin_s=0)
    plan = plan_spans(timeline(700, [5, 150, 310, 455, 600]), transitions, config)
    remuxed = [(5, 100), (150, 250), (310, 400), (455, 550), (600, 700)]
    assert bounds(plan) == [(start, end, "remux") for start, end in remuxed]
    assert plan.lost_blank_s == pytest.approx((30 + 5 + 20) / FPS)
    assert plan.lost_transition_s == pytest.approx((15 + 30) / FPS)
    assert plan.lost_damage_s == pytest.approx((10 + 20) / FPS)
    assert plan.lost_short_s == pytest.approx((20 + 20) / FPS)
    assert plan.lost_keyframe_s == pytest.approx((5 + 10 + 5 + 30) / FPS)
    assert plan.clip_s == pytest.approx((95 + 100 + 90 + 95 + 100) / FPS)
    nothing = plan_spans(timeline(700, [], remuxable=False), transitions, config)
    assert not nothing.spans
    assert nothing.lost_keyframe_s == pytest.approx((100 + 100 + 100 + 100 + 130) / FPS)


def test_a_transition_that_opens_or_ends_a_video_takes_its_margin_within_it():
    plan = plan_spans(
        timeline(300, [0], remuxable=False), [gradual(0, 20), gradual(280, 300)], SpanConfig(gradual_margin_s=2 / FPS)
    )
    assert bounds(plan) == [(22, 278, "transcode")]
    assert plan.lost_transition_s == pytest.approx(44 / FPS)
    margins = [gradual(100, 120), gradual(121, 140)]  # the second begins within the first's margin
    plan = plan_spans(timeline(300, [0], remuxable=False), margins, SpanConfig(gradual_margin_s=2 / FPS))
    assert bounds(plan) == [(0, 98, "transcode"), (142, 300, "transcode")]
    assert plan.lost_transition_s == pytest.approx(44 / FPS)


def test_a_span_says_what_the_cuts_asked_for_and_what_is_extracted():
    (first, second) = plan_spans(timeline(300, [0, 160]), [hard(150)]).spans
    assert (first.cut_start_pts, first.cut_end_pts, first.start_frame, first.frames) == (0, 150, 0, 150)
    assert (second.cut_start_pts, second.cut_end_pts, second.start_frame, second.frames) == (150, 300, 160, 140)


@pytest.mark.parametrize("config", [SpanConfig(min_s=0.2, max_s=0.4), SpanConfig(min_s=0.2, max_still_s=0.4)])
def test_stills_are_longer_than_a_frame_may_stand_and_add_up(config: SpanConfig):
    line = uneven([*range(10), 30, 31, 32, 33, 34, *range(60, 70)], 70)
    plan = plan_spans(line, [], config)
    assert [(s.start_pts, s.end_pts) for s in plan.spans] == [(0, 9), (60, 70)]
    assert plan.lost_still_s == pytest.approx((21 + 26) / FPS)
    assert plan.lost_short_s == pytest.approx(4 / FPS)
    as_long_as_a_clip_may_be = plan_spans(uneven([*range(10), 19], 25), [], config)
    assert as_long_as_a_clip_may_be.lost_still_s == 0


def test_a_long_shot_without_keyframes_is_divided_to_the_frame():
    plan = plan_spans(timeline(45 * FPS, [0], remuxable=False), [])
    assert [s.frames for s in plan.spans] == [375] * 3
    assert bounds(plan_spans(timeline(20 * FPS, [0, 250]), [])) == [(0, 500, "remux")]
    transcoded = plan_spans(timeline(30 * FPS, [0, 300]), [], SpanConfig(extraction="transcode"))
    assert [s.frames for s in transcoded.spans] == [375] * 2
    not_remuxable = plan_spans(timeline(30 * FPS, [0, 300], remuxable=False), [])
    assert [s.frames for s in not_remuxable.spans] == [375] * 2
    every_other = plan_spans(uneven(list(range(0, 30 * FPS, 2)), 30 * FPS), [])
    assert [s.end_pts for s in every_other.spans] == [374, 750]  # the last frame at or before the middle, 375


def test_a_frame_that_stands_longer_than_a_piece_is_a_piece_of_its_own():
    """40 pts in frames of 3, 27, 5 and 5, at most 30 to a piece: the middle, 20, lies within the second frame."""
    plan = plan_spans(uneven([0, 3, 30, 35], 40), [], SpanConfig(min_s=0.4, max_s=1.2, extraction="transcode"))
    assert [(s.start_pts, s.end_pts) for s in plan.spans] == [(3, 30), (30, 40)]
    assert plan.lost_short_s == pytest.approx(3 / FPS)
    plan = plan_spans(uneven([0, 30, 35], 60), [], SpanConfig(min_s=0.4, max_s=1.2, extraction="transcode"))
    assert [(s.start_pts, s.end_pts) for s in plan.spans] == [(0, 30), (30, 60)]


@pytest.mark.parametrize(
    ("frames", "min_s", "keys", "first_end"),
    [
        (750, 2.0, [188], 188),  # 30 s make two pieces of 15 s; a keyframe counts from half of that on,
        (750, 2.0, [187], 375),
        (750, 10.0, [250], 250),  # from min_s on where that is later,
        (750, 10.0, [249], 375),
        (1125, 2.0, [500], 500),  # up to max_s,
        (1125, 2.0, [501], 375),
        (525, 2.0, [475], 475),  # and as long as min_s remains
        (525, 2.0, [476], 262),
        (750, 2.0, [300, 360, 400], 360),  # the nearest to the middle
        (750, 2.0, [340, 400], 400),
    ],
)
def test_a_long_shot_is_divided_at_the_nearest_keyframe_that_leaves_both_sides_possible(
    frames: int, min_s: float, keys: list[int], first_end: int
):
    plan = plan_spans(timeline(frames, [0, *keys]), [], SpanConfig(min_s=min_s))
    assert plan.spans[0].cut_end_pts == first_end


def test_nothing_is_copied_where_packets_are_not_known_or_show_no_frame():
    assert count_remuxed(timeline(5, [0], packets=[]), 0, 5) == 0
    assert count_remuxed(timeline(5, [0], packets=[0, 1, 9, 2, 3, 4]), 0, 10) == 0
    assert count_remuxed(uneven([0, 2, 4], 6, [0]), 0, 6) == 3
    assert remuxed_packets(np.array([0, 1, 2]), 5, 9).tolist() == []


def test_a_copy_of_a_long_video_holds_all_its_packets():
    """More than a thousand packets, which are looked at in portions."""
    line = timeline(5000, [0, 100])
    assert count_remuxed(line, 100, 4500) == 4400
    assert remuxed_packets(line.packet_pts, 100, 4500).tolist() == list(range(100, 4500))
    assert remuxed_packets(line.packet_pts, 100, 9000).tolist() == list(range(100, 5000))


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
        remuxable=draw(st.booleans()),
    )
    extraction = draw(st.sampled_from(["auto", "remux", "transcode"]))
    return line, transitions, SpanConfig(extraction=extraction, min_s=1.0, max_s=draw(st.sampled_from([2.0, 5.0])))


@settings(deadline=None)
@given(situations())
def test_spans_keep_their_promises(situation):
    line, transitions, config = situation
    plan = plan_spans(line, transitions, config)
    lost = sum(value for name, value in vars(plan).items() if name.startswith("lost_"))
    assert plan.clip_s + lost == pytest.approx(line.seconds(0, len(line.frame_pts)))
    last_end = None
    for span in plan.spans:
        assert span.cut_start_pts <= span.start_pts < span.end_pts <= span.cut_end_pts
        assert last_end is None or span.start_pts >= last_end
        last_end = span.end_pts
        length_s = float((span.end_pts - span.start_pts) * line.time_base)
        assert config.min_s <= length_s <= config.max_s + 0.1
        assert span.frames == line.frame_at(span.end_pts) - span.start_frame
        assert span.extraction == "transcode" or span.start_pts in line.key_pts
        for t in transitions:
            assert span.end_pts <= t.start_pts or span.start_pts >= t.end_pts
        if span.extraction == "remux":
            shown = sorted(remuxed_packets(line.packet_pts, span.start_pts, span.end_pts))
            assert shown == line.frame_pts[span.start_frame : span.start_frame + span.frames].tolist()
