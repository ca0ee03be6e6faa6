"""Rows of a scan: the columns of a source, of its clips, and a note for the user."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.cropping import Margins
from clipmill.video import fps_id
from curation.inputs.stats import Source
from curation.shots.cuts import Transition
from curation.shots.refused import RefusedCut
from curation.shots.repeats import new_pictures
from curation.shots.spans import Span, SpanConfig, SpanPlan, Timeline
from curation.video.bars import JITTER_PX
from curation.video.fields import PROGRESSIVE, Fields
from curation.video.info import VideoInfo
from curation.video.packets import PacketIndex, Timestamps


def identity(source: Source) -> dict[str, Any]:
    """Columns that identify the input."""
    return {
        "source_id": source.source_id,
        "uri": source.uri,
        "size_bytes": source.size_bytes,
        "version": source.version,
        "metadata": dict(source.metadata),
        "error_kind": None,
        "error": None,
    }


def source_columns(
    info: VideoInfo, timeline: Timeline, packets: PacketIndex, plan: SpanPlan, changes: NDArray[np.float32]
) -> dict[str, Any]:
    """Columns of a source that is ok; `changes` are those of `distinct_share`, for all frames."""
    return {
        "container": info.container,
        "stream_index": info.stream_index,
        "other_video_streams": info.other_video_streams,
        "codec": info.codec,
        "pixel_format": info.pixel_format,
        **asdict(info.color),
        "bright_nits": info.bright_nits,
        "width": info.width,
        "height": info.height,
        "rotation": info.orientation.rotation,
        "mirrored": info.orientation.mirrored,
        **_frame_rate(timeline, 0, len(timeline.frame_pts), changes)[0],
        "duration_s": timeline.seconds(0, len(timeline.frame_pts)),
        "start_s": float(timeline.bound_pts(0) * timeline.time_base),
        "timestamps": timestamps(packets),
        "frames": len(timeline.frame_pts),
        "keyframes": len(timeline.key_pts),
        "audio": info.audio is not None,
        "audio_codec": info.audio and info.audio.codec,
        "audio_channels": info.audio and info.audio.channels,
        "audio_rate_hz": info.audio and info.audio.rate_hz,
        "alpha": info.alpha,
        "status": "ok",
        "clips": len(plan.spans),
        "clip_s": plan.clip_s,
        "lost_transition_s": plan.lost_transition_s,
        "lost_blank_s": plan.lost_blank_s,
        "lost_still_s": plan.lost_still_s,
        "lost_short_s": plan.lost_short_s,
        "lost_keyframe_s": plan.lost_keyframe_s,
        "lost_damage_s": plan.lost_damage_s,
    }


def timestamps(packets: PacketIndex) -> Timestamps:
    """Whether the time line of a source is the container's."""
    return "rebuilt" if packets.rebuilt else "container"


def transition_columns(transition: Transition, timeline: Timeline) -> dict[str, Any]:
    """A transition in the column of a source."""
    return {
        "kind": transition.kind,
        "start_frame": transition.start_frame,
        "end_frame": transition.end_frame,
        "start_s": float(transition.start_pts * timeline.time_base),
        "end_s": float(transition.end_pts * timeline.time_base),
    }


def refused_columns(cut: RefusedCut, timeline: Timeline) -> dict[str, Any]:
    """A refused proposal in the column of a source."""
    return {
        "kind": cut.kind,
        "start_frame": cut.start_frame,
        "end_frame": cut.end_frame,
        "start_s": float(timeline.bound_pts(cut.start_frame) * timeline.time_base),
        "end_s": float(timeline.bound_pts(cut.end_frame) * timeline.time_base),
        "reason": cut.reason,
    }


def displayed_columns(info: VideoInfo, size: tuple[int, int], bars: Margins) -> dict[str, Any]:
    """Columns of a clip's geometry, as displayed; `size` is width and height of the decoded frames."""
    width, height = size[0] - bars.left - bars.right, size[1] - bars.top - bars.bottom
    aspect = info.sample_aspect_ratio
    width, height = info.orientation.shown_size(max(1, round(width * aspect)), height)
    square = replace(bars, left=round(bars.left * aspect), right=round(bars.right * aspect))
    left, top, right, bottom = square.of_upright(info.orientation).sides
    return {
        "width": width,
        "height": height,
        "crop_left": left,
        "crop_top": top,
        "crop_right": right,
        "crop_bottom": bottom,
    }


def shown_shares(
    info: VideoInfo, size: tuple[int, int], bars: Margins, cut_off: Margins
) -> tuple[float, float, float, float]:
    """The bars at the left, top, right and bottom of the displayed frame, as shares of its width and height.

    What is `cut_off` is not of that frame any more; where it clearly exceeds the bars, the shares are negative.
    """
    width, height = info.orientation.shown_size(
        size[0] - cut_off.left - cut_off.right, size[1] - cut_off.top - cut_off.bottom
    )
    sides = (margins.of_upright(info.orientation).sides for margins in (bars, cut_off))
    more = (bar - gone for bar, gone in zip(*sides, strict=True))
    left, top, right, bottom = (px if px > 0 or px < -JITTER_PX else 0 for px in more)
    return left / width, top / height, right / width, bottom / height


def clip_columns(
    source: Source,
    info: VideoInfo,
    timeline: Timeline,
    packets: PacketIndex,
    span: Span,
    changes: NDArray[np.float32],
) -> dict[str, Any]:
    """Position of a clip in its source, and its frame timing."""
    rate, new = _frame_rate(timeline, span.start_frame, span.start_frame + span.frames, changes)
    base = timeline.time_base
    bounds = ("cut_start", "cut_end", "start", "end")
    return {
        "clip_id": f"{source.source_id}-{span.start_pts}-{span.end_pts}".replace("--", "-m"),
        "source_id": source.source_id,
        "uri": source.uri,
        "extraction": span.extraction,
        "timestamps": timestamps(packets),
        "time_base_num": base.numerator,
        "time_base_den": base.denominator,
        **{f"{bound}_pts": getattr(span, f"{bound}_pts") for bound in bounds},
        **{f"{bound}_s": float(getattr(span, f"{bound}_pts") * base) for bound in bounds},
        "duration_s": float((span.end_pts - span.start_pts) * base),
        "start_frame": span.start_frame,
        "frames": span.frames,
        **rate,
        "distinct_frames": None if new is None or new.all() else np.flatnonzero(new).tolist(),
        "fps_id": fps_id(rate["distinct_fps"]) if rate["distinct_fps"] else None,
        "codec": info.codec,
    }


def _frame_rate(
    timeline: Timeline, first: int, last: int, changes: NDArray[np.float32]
) -> tuple[dict[str, Any], NDArray[np.bool_] | None]:
    """`fps`: (frames - 1) / (last pts - first pts); `variable_fps`: 1 % of the intervals deviate from the median, or
    one by far; `distinct_fps`. And which frames show a new picture.
    """
    intervals: NDArray[np.int64] = np.diff(timeline.frame_pts[first:last])
    if not len(intervals):
        return {"fps": None, "variable_fps": False, "distinct_fps": None}, None
    fps = len(intervals) / float(int(intervals.sum()) * timeline.time_base)
    median = float(np.median(intervals))
    stray = np.abs(intervals - median) > max(1.5, 0.1 * median)  # 1.5 ticks: rounding to a coarse time base
    intervals_s = intervals.astype(np.float64) * float(timeline.time_base)
    new, share = new_pictures(intervals_s, changes[first + 1 : last].astype(np.float64))
    rate = {
        "fps": fps,
        "variable_fps": bool(stray.mean() > 0.01 or intervals.max() > 3 * median + 1.5),
        "distinct_fps": fps * share,
    }
    return rate, np.concatenate([[True], new])


def note(
    info: VideoInfo,
    timeline: Timeline,
    packets: PacketIndex,
    plan: SpanPlan,
    config: SpanConfig,
    thumbnails: str | None = None,
    interlaced: Fields = PROGRESSIVE,
) -> str | None:
    """Note for a source that is ok but damaged, or yields no clips."""
    notes = []
    if packets.damaged_frames:
        notes.append(f"{len(packets.damaged_frames)} damaged packets or frames were skipped")
    if packets.rebuilt:
        notes.append(f"timestamps rebuilt for {packets.rebuilt} of {packets.decoded} frames")
    decoded_s = timeline.seconds(0, len(timeline.frame_pts))
    stated_s = info.duration_s if info.duration_s is not None and not packets.rebuilt else 0.0  # it includes all jumps
    if packets.ended_early or decoded_s < stated_s - 1:
        promised = f" of the stated {stated_s:.1f} s" if stated_s > decoded_s + 0.1 else ""
        reason = f" ({packets.ended_early})" if packets.ended_early else ""
        notes.append(f"only {decoded_s:.1f} s{promised} could be read{reason}")
    if thumbnails:
        notes.append(thumbnails)
    if not plan.spans:
        notes.append(_why_no_clip(info, timeline, plan, config, interlaced))
    return "; ".join(notes) or None


def _why_no_clip(info: VideoInfo, timeline: Timeline, plan: SpanPlan, config: SpanConfig, interlaced: Fields) -> str:
    whole_s = timeline.seconds(0, len(timeline.frame_pts))
    if plan.lost_blank_s and plan.lost_blank_s > whole_s - config.min_s:
        return f"{plan.lost_blank_s:.1f} s of {whole_s:.1f} s are black or blank; the rest yields no clip"
    if config.extraction == "remux" and not timeline.remuxable:
        what = f"{info.codec} in this container" if interlaced == PROGRESSIVE else "interlaced footage"
        return f"{what} cannot be remuxed into MP4; with extraction: auto it is transcoded"
    why = f"no shot yields a clip of {config.min_s:g} s"
    if config.extraction == "remux" and plan.lost_keyframe_s:
        why += " that starts on a keyframe and can be remuxed"
    if plan.lost_blank_s:
        why += f"; {plan.lost_blank_s:.1f} s of {whole_s:.1f} s are black or blank"
    return why
