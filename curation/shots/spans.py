"""Turns cuts, keyframes and length limits into clip spans, keyframe-aware as in the paper (section 3.1, App. C).

A span is a row, not a file: exact start and end timestamps in the source's time base, and how the clip will be
extracted: `remux` (packets unchanged, from a keyframe on) or `transcode` (frame-exact).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from clipmill.config import Config

if TYPE_CHECKING:
    from curation.shots.cuts import Transition

REMUX_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers whose packets go into MP4 byte for byte (transport streams and AVI would have to be rewritten)."""
REMUX_CODECS = ("h264", "hevc", "av1", "vp9", "mpeg4")
REMUX_PIXEL_FORMATS = (
    *("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray", "gbrp"),
    *(f"{planar}{bits}le" for planar in ("yuv420p", "yuv422p", "yuv444p", "gray", "gbrp") for bits in (10, 12)),
)
"""Pixel formats that the readers of training decode from an MP4 (4:4:0, for one, they do not)."""
BROADCAST_CONTAINERS = ("mpegts", "mpeg")
"""Containers in which a frame is never shown for longer than its duration: where time goes on without one, footage is
missing. In others it stays until the next."""
_PACKETS_AT_FIRST = 1024


class SpanConfig(Config):
    """Clip lengths and extraction."""

    min_s: float = Field(2.0, gt=0)
    """Minimum clip length. Shorter shots are dropped and counted in `lost_short_s`."""
    max_s: float = Field(20.0, gt=0)
    """Maximum clip length; at least twice `min_s`. Longer shots are divided into clips of about equal length."""
    extraction: Literal["auto", "remux", "transcode"] = "auto"
    """How clips are written to shards: `remux` copies packets between keyframes, `transcode` is frame-exact,
    `auto` decides per clip by `remux_loss_s`."""
    remux_loss_s: float = Field(0.5, ge=0)
    """With `extraction: auto`, a clip is remuxed if aligning its ends to keyframes costs at most this much footage, and
    transcoded otherwise. Raise it to transcode less; 0 remuxes only clips that lose nothing."""
    max_still_s: float = Field(5.0, gt=0)
    """Longest time that a single frame may stand within a clip. A frame that stands longer is a still: it is in no clip
    and counted in `lost_still_s`. Raise it to keep slides, up to `max_s`."""
    gradual_margin_s: float = Field(0.1, ge=0)
    """Extra footage dropped on both sides of a gradual transition, whose ends are not known to the frame. Raise it if
    clips begin or end with frames that still mix two shots."""

    @model_validator(mode="after")
    def _check_limits(self) -> "SpanConfig":
        if self.max_s < 2 * self.min_s:
            raise ValueError(f"max_s ({self.max_s}) must be at least twice min_s ({self.min_s}), to divide long shots")
        return self


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What a scan learned about time in one source; all pts in `time_base`."""

    time_base: Fraction
    frame_pts: NDArray[np.int64]
    """Display order, strictly rising."""
    end_pts: int
    """pts of the last frame plus its duration."""
    key_pts: NDArray[np.int64]
    """Frames from which decoding can start: keyframes by the packet's flag and by the decoder's word."""
    packet_pts: NDArray[np.int64]
    """Decode order; empty where the container does not say, and nothing can be remuxed then."""
    remuxable: bool
    """Whether container and codec go into MP4 unchanged."""
    holds: bool = True
    """Whether a frame stays until the next one, so that a long interval is a still and no gap."""

    @cached_property
    def decode_places(self) -> dict[int, int]:
        """Of each packet's pts the place of its first packet in decode order."""
        return dict(zip(self.packet_pts[::-1].tolist(), range(len(self.packet_pts) - 1, -1, -1), strict=True))

    def bound_pts(self, frame: int) -> int:
        """The pts at which `frame` starts; for frame == number of frames, the end of the video."""
        return int(self.frame_pts[frame]) if frame < len(self.frame_pts) else self.end_pts

    def seconds(self, first_frame: int, last_frame: int) -> float:
        """Duration of the frames first_frame <= i < last_frame."""
        return float((self.bound_pts(last_frame) - self.bound_pts(first_frame)) * self.time_base)

    def frame_at(self, pts: int) -> int:
        """Index of the first frame at or after `pts`."""
        return int(np.searchsorted(self.frame_pts, pts))


@dataclass(frozen=True, kw_only=True)
class Span:
    """One clip: what the cuts asked for (`cut_*`), what is extracted (`start`, `end`, exclusive), and how."""

    cut_start_pts: int
    cut_end_pts: int
    start_pts: int
    end_pts: int
    start_frame: int
    frames: int
    extraction: Literal["remux", "transcode"]


@dataclass(kw_only=True)
class SpanPlan:
    """All clips of a source and where the rest of its footage went, in seconds; they add up to its duration."""

    spans: list[Span] = field(default_factory=list)
    clip_s: float = 0.0
    lost_transition_s: float = 0.0
    lost_blank_s: float = 0.0
    lost_damage_s: float = 0.0
    lost_still_s: float = 0.0
    lost_short_s: float = 0.0
    lost_keyframe_s: float = 0.0


def plan_spans(
    timeline: Timeline,
    transitions: "Sequence[Transition]",
    config: SpanConfig | None = None,
    *,
    changes: Callable[[int, int], bool] = lambda first, last: False,
) -> SpanPlan:
    """Divide a video into clips that hold frames of one shot only.

    `transitions` are sorted and do not overlap. Shots shorter than `min_s` are left out, longer than `max_s` divided.
    With `extraction: auto` frames first <= i < last are transcoded if `changes(first, last)`: their pixels change.
    """
    config = config or SpanConfig()
    plan = SpanPlan()
    for first, last in _shots(timeline, transitions, config, plan):
        if timeline.seconds(first, last) < config.min_s:
            plan.lost_short_s += timeline.seconds(first, last)
            continue
        for piece_first, piece_last in _divide(timeline, first, last, config):
            _add_clip(timeline, piece_first, piece_last, config, plan, changes)
    return plan


def _shots(
    timeline: Timeline, transitions: "Sequence[Transition]", config: SpanConfig, plan: SpanPlan
) -> list[tuple[int, int]]:
    """Frame ranges [first, last) between transitions; what the transitions take away is booked in `plan`."""
    frames = len(timeline.frame_pts)
    margin_pts = round(config.gradual_margin_s / timeline.time_base)
    shots, first = [], 0
    for transition in transitions:
        last, next_first = transition.start_frame, transition.end_frame
        if transition.kind != "hard":
            last = timeline.frame_at(timeline.bound_pts(last) - margin_pts)
            next_first = timeline.frame_at(timeline.bound_pts(next_first) + margin_pts)
        last, next_first = max(first, last), min(frames, max(first, next_first))
        lost_s = timeline.seconds(last, next_first)
        if transition.kind == "damage":
            plan.lost_damage_s += lost_s
        else:
            blank_s = _seconds_within(timeline, transition.blank, last, next_first)
            plan.lost_blank_s += blank_s
            plan.lost_transition_s += lost_s - blank_s
        shots.append((first, last))
        first = next_first
    shots.append((first, frames))
    return [piece for a, b in shots for piece in _without_stills(timeline, a, b, config, plan)]


def _seconds_within(timeline: Timeline, ranges: Sequence[tuple[int, int]], first: int, last: int) -> float:
    """What the frame ranges, which do not overlap, cover of the frames first <= i < last."""
    within = ((max(a, first), min(b, last)) for a, b in ranges)
    return sum(timeline.seconds(a, b) for a, b in within if a < b)


def _without_stills(
    timeline: Timeline, first: int, last: int, config: SpanConfig, plan: SpanPlan
) -> list[tuple[int, int]]:
    """The shot without frames that stand for too long: stills, or gaps."""
    bounds_pts = [*timeline.frame_pts[first:last].tolist(), timeline.bound_pts(last)]
    too_long = min(config.max_still_s, config.max_s) / timeline.time_base
    pieces = []
    for gap in first + np.flatnonzero(np.diff(bounds_pts) > too_long):
        still_s = timeline.seconds(int(gap), int(gap) + 1)
        if timeline.holds:
            plan.lost_still_s += still_s
        else:
            plan.lost_damage_s += still_s
        pieces.append((first, int(gap)))
        first = int(gap) + 1
    return [*pieces, (first, last)]


def _divide(timeline: Timeline, first: int, last: int, config: SpanConfig) -> list[tuple[int, int]]:
    """Cut a long shot into even pieces of at most `max_s`, at a keyframe near by if there is one, to remux both."""
    pieces = []
    while (remaining_s := timeline.seconds(first, last)) > config.max_s:
        target_s = remaining_s / np.ceil(remaining_s / config.max_s)
        start_pts = timeline.bound_pts(first)
        target_pts = start_pts + round(target_s / timeline.time_base)
        boundary = timeline.frame_at(target_pts + 1) - 1
        if config.extraction != "transcode" and timeline.remuxable:
            lowest = start_pts + max(target_s / 2, config.min_s) / timeline.time_base
            highest = start_pts + config.max_s / timeline.time_base
            highest = min(highest, timeline.bound_pts(last) - config.min_s / timeline.time_base)
            low, high = bisect_left(timeline.key_pts, lowest), bisect_right(timeline.key_pts, highest)
            keys = timeline.key_pts[low:high]
            if len(keys):
                boundary = timeline.frame_at(int(keys[np.argmin(np.abs(keys - target_pts))]))
        boundary = min(max(boundary, first + 1), last)
        pieces.append((first, boundary))
        first = boundary
    return [*pieces, (first, last)]


def _add_clip(
    timeline: Timeline,
    first: int,
    last: int,
    config: SpanConfig,
    plan: SpanPlan,
    changes: Callable[[int, int], bool],
) -> None:
    """Add the clip [first, last) to the plan, remuxed or transcoded, or book it as lost."""
    wanted_s = timeline.seconds(first, last)
    start, end, extraction = first, last, "transcode"
    auto = config.extraction == "auto"
    if config.extraction != "transcode" and timeline.remuxable and not (auto and changes(first, last)):
        remux_first, remux_last = _remux_range(timeline, first, last)
        remuxed_s = timeline.seconds(remux_first, remux_last)
        near = wanted_s - remuxed_s <= config.remux_loss_s or not auto
        if near and remuxed_s >= config.min_s:
            start, end, extraction = remux_first, remux_last, "remux"
    if wanted_s < config.min_s:
        plan.lost_short_s += wanted_s
        return
    if config.extraction == "remux" and extraction != "remux":
        plan.lost_keyframe_s += wanted_s
        return
    clip_s = timeline.seconds(start, end)
    plan.clip_s += clip_s
    plan.lost_keyframe_s += wanted_s - clip_s
    plan.spans.append(
        Span(
            cut_start_pts=timeline.bound_pts(first),
            cut_end_pts=timeline.bound_pts(last),
            start_pts=timeline.bound_pts(start),
            end_pts=timeline.bound_pts(end),
            start_frame=start,
            frames=end - start,
            extraction=extraction,  # type: ignore[arg-type]
        )
    )


def _remux_range(timeline: Timeline, first: int, last: int) -> tuple[int, int]:
    """The frames that remuxing gives: from the first keyframe on, to the last frame decodable from within the shot."""
    start_pts, end_pts = timeline.bound_pts(first), timeline.bound_pts(last)
    key = int(np.searchsorted(timeline.key_pts, start_pts))
    if key == len(timeline.key_pts):
        return first, first
    key_pts = int(timeline.key_pts[key])
    start = timeline.frame_at(key_pts)
    return start, start + count_remuxed(timeline, key_pts, end_pts)


def count_remuxed(timeline: Timeline, key_pts: int, end_pts: int) -> int:
    """How many frames from `key_pts` on come out when packets are remuxed up to, in decode order, `end_pts`.

    A frame before `end_pts` can refer to a later frame that is stored before it; the packets before the first one at
    or beyond `end_pts` refer to nothing beyond. Of these, frames count only up to the first gap in display order. 0
    where the packets do not match the frames one to one.
    """
    start, place = timeline.frame_at(key_pts), timeline.decode_places.get(key_pts)
    if place is None:
        return 0
    while True:
        packets = _remuxed_from(timeline.packet_pts, place, key_pts, end_pts)
        if len(np.unique(packets)) < len(packets) or not _are_frames(timeline, packets):
            return 0  # packets that show nothing of their own, as an edit list makes them
        expected = timeline.frame_pts[start : start + len(packets)]
        held = np.isin(expected, packets)
        if held.all():
            return len(packets)
        gap_pts = int(expected[np.argmin(held)])
        assert gap_pts < end_pts, "a frame after the gap is held, so the gap lies before the end"
        end_pts = gap_pts


def remuxed_packets(packet_pts: NDArray[np.int64], key_pts: int, end_pts: int) -> NDArray[np.int64]:
    """pts, in decode order, of the packets that remuxing copies for [key_pts, end_pts).

    Frames that lead the keyframe (shown before it, stored after it) belong to the previous group and are left out.
    """
    begin = np.flatnonzero(packet_pts == key_pts)
    return _remuxed_from(packet_pts, int(begin[0]), key_pts, end_pts) if len(begin) else packet_pts[:0]


def _remuxed_from(packet_pts: NDArray[np.int64], place: int, key_pts: int, end_pts: int) -> NDArray[np.int64]:
    """The same from the keyframe's place on; looks no further into a long video than twice as far as needed."""
    reach = _PACKETS_AT_FIRST
    while True:
        rest = packet_pts[place : place + reach]
        beyond = np.flatnonzero(rest >= end_pts)
        if len(beyond) or place + reach >= len(packet_pts):
            rest = rest[: beyond[0]] if len(beyond) else rest
            return rest[rest >= key_pts]
        reach *= 2


def _are_frames(timeline: Timeline, pts: NDArray[np.int64]) -> bool:
    frames = np.minimum(np.searchsorted(timeline.frame_pts, pts), len(timeline.frame_pts) - 1)
    return bool((timeline.frame_pts[frames] == pts).all())
