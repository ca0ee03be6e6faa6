"""The one pass over a source: its cuts, its motion, and the pictures that every other scorer looks at.

Each frame is decoded once. Pictures are kept at most a quarter of a second apart until the clips are known, so no
second pass is needed to get the first, middle and last frame of each.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from curation.captions import captions_between, read_captions
from curation.config import Config
from curation.cuts import CutConfig, CutDetector, Transition
from curation.decode import Frame, Limits, PacketIndex, Video, VideoInfo
from curation.errors import SourceError
from curation.microconditioning import fps_id, motion_bucket
from curation.motion import MotionConfig, MotionMeter
from curation.pictures import Image, Shrinker
from curation.sources import Source, open_source
from curation.spans import COPY_CODECS, COPY_CONTAINERS, Span, SpanConfig, SpanPlan, Timeline, plan_spans

_SPOOL_IN_MEMORY_BYTES = 32 << 20
_JPEG_QUALITY = 92


class ScanConfig(Config):
    """Settings of the scan, each owned by the module that uses it."""

    cuts: CutConfig = Field(default_factory=CutConfig)
    spans: SpanConfig = Field(default_factory=SpanConfig)
    motion: MotionConfig = Field(default_factory=MotionConfig)
    limits: Limits = Field(default_factory=Limits)
    picture_long_side_px: int = 640
    picture_spacing_s: float = 0.25

    def scan_settings(self) -> "ScanConfig":
        """These alone, of a configuration that holds more: a scanning child need not import the rest."""
        return ScanConfig(**{name: getattr(self, name) for name in ScanConfig.model_fields})


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one pass found: a `sources` row; per clip a `clips` row and three JPEG pictures (first, middle, last)."""

    source: dict[str, Any]
    clips: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[tuple[bytes, ...]] = field(default_factory=list)


def scan(source: Source, config: ScanConfig | None = None) -> Scan:
    """Decode a source once and describe it.

    Raises SourceError where nothing of it can be used. Runs native code on untrusted bytes: call it through
    `curation.isolation.Isolated` unless the file is your own.
    """
    config = config or ScanConfig()
    started_s = time.process_time()
    if source.error is not None:
        raise source.error
    if source.size_bytes is not None and source.size_bytes > config.limits.max_bytes:
        raise SourceError("too_large", f"{source.size_bytes:,} bytes, at most {config.limits.max_bytes:,} are allowed")
    with open_source(source.uri) as file, _PictureSpool() as spool, Video(file, config.limits) as video:
        one_pass = _OnePass(video, config, spool)
        result = one_pass.describe(source)
    result.source["scan_cpu_s"] = time.process_time() - started_s
    return result


def rejected(source: Source, error: SourceError) -> Scan:
    """The scan of a source that could not be scanned: one row that says why."""
    return rejected_row(_identity(source), error)


def rejected_row(row: Mapping[str, Any], error: SourceError) -> Scan:
    """The same for a source whose row is there already: only what identifies it stays."""
    identity = {name: row.get(name) for name in ("source_id", "uri", "size_bytes", "mark")}
    verdict = {"status": "rejected", "error_kind": error.kind, "error": error.message, "clips": 0}
    return Scan(source=identity | verdict)


class _OnePass:
    """Runs all that looks at every frame, then turns what they say into rows."""

    def __init__(self, video: Video, config: ScanConfig, spool: "_PictureSpool") -> None:
        self._video, self._config, self._spool = video, config, spool
        self._shrinker = Shrinker()
        self._tick_s = float(video.info.time_base)
        self._cuts = CutDetector(config.cuts)
        self._motion = MotionMeter(config.motion)
        self._previous: Frame | None = None
        self._sizes: list[tuple[int, int, int]] = []
        self._frame_pts: list[int] = []
        self._key_pts: list[int] = []
        self._last_duration = 0
        for frame in video.frames():
            self._look_at(frame)
        if not self._frame_pts:
            raise SourceError("decode_error", "the stream has no frame with a timestamp")
        self._keep_picture(self._previous, float("inf"))

    def _look_at(self, frame: Frame) -> None:
        picture, time_s = frame.picture, frame.pts * self._tick_s
        self._cuts.push(frame.index, frame.pts, time_s, self._shrinker.small_luma(picture))
        if self._motion.wants(time_s):
            luma = self._shrinker.luma(picture, self._video.info, short_side_px=self._config.motion.short_side_px)
            self._motion.push(frame.pts, time_s, luma)
        self._keep_picture(self._previous, time_s)
        self._previous = frame
        if not self._sizes or self._sizes[-1][1:] != (picture.width, picture.height):
            self._sizes.append((frame.index, picture.width, picture.height))
        if picture.key_frame:
            self._key_pts.append(frame.pts)
        self._frame_pts.append(frame.pts)
        self._last_duration = picture.duration or 0

    def _keep_picture(self, frame: Frame | None, next_s: float) -> None:
        """Keep a frame as a candidate picture if none was kept that lies near enough to the next frame."""
        if frame is not None and self._spool.due(next_s, self._config.picture_spacing_s):
            info, long_side_px = self._video.info, self._config.picture_long_side_px
            bgr = self._shrinker.upright_bgr(frame.picture, info, long_side_px=long_side_px)
            self._spool.add(frame.pts, frame.pts * self._tick_s, bgr)

    def describe(self, source: Source) -> Scan:
        info, packets = self._video.info, self._video.packets
        timeline = self._timeline()
        damage = _damage(timeline, packets)
        transitions = _merge(self._cuts.finish(), [*damage, *self._size_changes(timeline)])
        plan = plan_spans(timeline, transitions, self._config.spans)
        row = _identity(source) | _source_columns(info, timeline, packets, plan)
        row["note"] = _note(info, timeline, packets, plan, self._config.spans)
        row["transitions"] = [
            {
                "kind": t.kind,
                "start_frame": t.start_frame,
                "end_frame": t.end_frame,
                "start_s": float(t.start_pts * timeline.time_base),
                "end_s": float(t.end_pts * timeline.time_base),
            }
            for t in transitions
        ]
        captions = read_captions(source, info.metadata)
        clips, pictures = [], []
        for span in plan.spans:
            clip = _clip_columns(source, info, timeline, span) | self._displayed_size(span)
            clip["motion"], clip["motion_error"] = self._motion.between(span.start_pts, span.end_pts)
            clip["motion_bucket"] = motion_bucket(clip["motion"])
            within_s = (clip["start_s"] - row["start_s"], clip["end_s"] - row["start_s"])
            clip["captions"] = [asdict(caption) for caption in captions_between(captions, *within_s)]
            clip["picture_pts"], jpegs = self._spool.first_middle_last(span.start_pts, span.end_pts)
            clips.append(clip)
            pictures.append(jpegs)
        return Scan(source=row, clips=clips, pictures=pictures)

    def _size_changes(self, timeline: Timeline) -> list[Transition]:
        """Where the frame size changes another shot begins, whatever the pictures show."""
        return [
            Transition(
                kind="hard",
                start_frame=index,
                end_frame=index,
                start_pts=timeline.bound_pts(index),
                end_pts=timeline.bound_pts(index),
            )
            for index, *_ in self._sizes[1:]
        ]

    def _displayed_size(self, span: Span) -> dict[str, int]:
        info = self._video.info
        width, height = next((w, h) for index, w, h in reversed(self._sizes) if index <= span.start_frame)
        width = round(width * info.sample_aspect_ratio)
        return {"width": height, "height": width} if info.rotation in (90, 270) else {"width": width, "height": height}

    def _timeline(self) -> Timeline:
        info, packets = self._video.info, self._video.packets
        frame_pts = np.array(self._frame_pts, np.int64)
        duration = self._last_duration or (int(np.median(np.diff(frame_pts))) if len(frame_pts) > 1 else 1)
        stamped = [pts for pts in packets.pts if pts is not None]
        complete = len(stamped) == len(packets.pts)
        flagged = {pts for pts, key in zip(packets.pts, packets.is_key, strict=True) if key}
        return Timeline(
            time_base=info.time_base,
            frame_pts=frame_pts,
            end_pts=int(frame_pts[-1]) + duration,
            key_pts=np.array([pts for pts in self._key_pts if pts in flagged], np.int64),
            packet_pts=np.array(stamped if complete else [], np.int64),
            copyable=complete and self._fits_mp4(),
        )

    def _fits_mp4(self) -> bool:
        """Whether the packets can go into an MP4 as they are."""
        info, extradata = self._video.info, bytes(self._video.codec_context.extradata or b"")
        # Start codes instead of lengths between the units (Annex B) would have to be rewritten.
        annex_b = info.codec in ("h264", "hevc") and not extradata.startswith(b"\x01")
        return info.container in COPY_CONTAINERS and info.codec in COPY_CODECS and not annex_b


class _PictureSpool:
    """Candidate pictures as JPEG, in memory while they are few and in a temporary file when a shot goes on and on."""

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.SpooledTemporaryFile(_SPOOL_IN_MEMORY_BYTES)  # type: ignore[assignment] # noqa: SIM115
        self._pts: list[int] = []
        self._ends: list[int] = [0]
        self._last_s = float("-inf")

    def __enter__(self) -> "_PictureSpool":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def due(self, next_s: float, spacing_s: float) -> bool:
        """Whether waiting for the next frame would leave a gap of more than `spacing_s`."""
        return next_s - self._last_s > spacing_s + 1e-6

    def add(self, pts: int, time_s: float, picture_HWC: Image) -> None:
        _, jpeg = cv2.imencode(".jpg", picture_HWC, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        self._file.write(jpeg.tobytes())
        self._pts.append(pts)
        self._ends.append(self._ends[-1] + len(jpeg))
        self._last_s = time_s

    def first_middle_last(self, start_pts: int, end_pts: int) -> tuple[list[int], tuple[bytes, ...]]:
        """pts and JPEG bytes of the pictures nearest to the start, the middle and the end of a clip, within it."""
        low, high = np.searchsorted(self._pts, (start_pts, end_pts))
        if low == high:
            return [], ()
        inside = np.array(self._pts[low:high])
        middle = low + int(np.argmin(np.abs(inside - (start_pts + end_pts) / 2)))
        chosen = [int(low), middle, int(high) - 1]
        return [self._pts[i] for i in chosen], tuple(self._read(i) for i in chosen)

    def _read(self, i: int) -> bytes:
        self._file.seek(self._ends[i])
        return self._file.read(self._ends[i + 1] - self._ends[i])


def _damage(timeline: Timeline, packets: PacketIndex) -> list[Transition]:
    """What cannot be trusted: from the last frame decoded before a bad packet to the next keyframe."""
    stretches = []
    decode_order = [pts for pts in packets.pts if pts is not None]
    for bad in sorted(set(packets.damaged_pts)):
        place = decode_order.index(bad) if bad in decode_order else len(decode_order)
        before = [pts for pts in decode_order[:place] if pts < bad]
        start = timeline.frame_at(max(before) + 1) if before else 0
        later_keys = timeline.key_pts[timeline.key_pts > bad]
        end = timeline.frame_at(int(later_keys[0])) if len(later_keys) else len(timeline.frame_pts)
        stretches.append((start, end))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return [
        Transition(
            kind="damage", start_frame=a, end_frame=b, start_pts=timeline.bound_pts(a), end_pts=timeline.bound_pts(b)
        )
        for a, b in merged
    ]


def _merge(seen: list[Transition], certain: list[Transition]) -> list[Transition]:
    """Both in order. What was seen where the stream is damaged or changes its size is an effect of that."""

    def overlaps(cut: Transition) -> bool:
        return any(c.start_frame <= cut.end_frame and cut.start_frame <= c.end_frame for c in certain)

    return sorted([s for s in seen if not overlaps(s)] + certain, key=lambda t: (t.start_frame, t.end_frame))


def _identity(source: Source) -> dict[str, Any]:
    return {
        "source_id": source.source_id,
        "uri": source.uri,
        "size_bytes": source.size_bytes,
        "mark": source.mark,
        "error_kind": None,
        "error": None,
    }


def _source_columns(info: VideoInfo, timeline: Timeline, packets: PacketIndex, plan: SpanPlan) -> dict[str, Any]:
    fps, variable = _frame_rate(timeline, 0, len(timeline.frame_pts))
    return {
        "container": info.container,
        "codec": info.codec,
        "pixel_format": info.pixel_format,
        "width": info.width,
        "height": info.height,
        "rotation": info.rotation,
        "fps": fps,
        "variable_fps": variable,
        "duration_s": timeline.seconds(0, len(timeline.frame_pts)),
        "start_s": float(timeline.bound_pts(0) * timeline.time_base),
        "frames": len(timeline.frame_pts),
        "keyframes": len(timeline.key_pts),
        "audio": info.audio,
        "status": "ok",
        "clips": len(plan.spans),
        "clip_s": plan.clip_s,
        "lost_transition_s": plan.lost_transition_s,
        "lost_short_s": plan.lost_short_s,
        "lost_keyframe_s": plan.lost_keyframe_s,
        "lost_damage_s": plan.lost_damage_s,
    }


def _clip_columns(source: Source, info: VideoInfo, timeline: Timeline, span: Span) -> dict[str, Any]:
    fps, variable = _frame_rate(timeline, span.start_frame, span.start_frame + span.frames)
    base = timeline.time_base
    bounds = ("cut_start", "cut_end", "start", "end")
    return {
        "clip_id": f"{source.source_id}-{span.start_pts}-{span.end_pts}".replace("--", "-m"),
        "source_id": source.source_id,
        "uri": source.uri,
        "take": span.take,
        "time_base_num": base.numerator,
        "time_base_den": base.denominator,
        **{f"{bound}_pts": getattr(span, f"{bound}_pts") for bound in bounds},
        **{f"{bound}_s": float(getattr(span, f"{bound}_pts") * base) for bound in bounds},
        "duration_s": float((span.end_pts - span.start_pts) * base),
        "start_frame": span.start_frame,
        "frames": span.frames,
        "fps": fps,
        "variable_fps": variable,
        "fps_id": fps_id(fps),
        "codec": info.codec,
    }


def _frame_rate(timeline: Timeline, first: int, last: int) -> tuple[float | None, bool]:
    """(frames - 1) / (last pts - first pts), and whether 1 % of the intervals stray from the median, or one far."""
    intervals: NDArray[np.int64] = np.diff(timeline.frame_pts[first:last])
    if not len(intervals):
        return None, False
    fps = len(intervals) / float(int(intervals.sum()) * timeline.time_base)
    median = float(np.median(intervals))
    stray = np.abs(intervals - median) > max(1.5, 0.1 * median)  # 1.5 ticks: rounding to a coarse time base
    return fps, bool(stray.mean() > 0.01 or intervals.max() > 3 * median + 1.5)


def _note(info: VideoInfo, timeline: Timeline, packets: PacketIndex, plan: SpanPlan, config: SpanConfig) -> str | None:
    """What a reader should know of a source that is ok but not whole, or that gave no clip."""
    notes = []
    if packets.damaged_pts:
        notes.append(f"{len(set(packets.damaged_pts))} damaged packets or frames were left out")
    if packets.unordered:
        notes.append(f"{packets.unordered} frames out of order were left out")
    decoded_s = timeline.seconds(0, len(timeline.frame_pts))
    if packets.ended_early or (info.duration_s is not None and decoded_s < info.duration_s - 1):
        promised = f" of the {info.duration_s:.1f} s it promises" if info.duration_s else ""
        reason = f" ({packets.ended_early})" if packets.ended_early else ""
        notes.append(f"only {decoded_s:.1f} s{promised} could be read{reason}")
    if not plan.spans:
        why = f"no shot gives a clip of {config.min_s:g} s"
        if config.take == "copy" and not timeline.copyable:
            why = (
                f"packets of {info.codec} in this container cannot be copied into an MP4; take: auto would encode them"
            )
        elif config.take == "copy" and plan.lost_keyframe_s:
            why += " that starts on a keyframe and can be copied"
        notes.append(why)
    return "; ".join(notes) or None
