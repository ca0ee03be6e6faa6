"""The single pass over a source: cuts, motion, and the thumbnails that scorers use.

Each frame is decoded once. Thumbnail candidates at most a quarter of a second apart are kept until the clips are known,
so no second pass is needed for the first, middle and last frame of each clip.
"""

import time
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import Field

from clipmill.addresses import redacted
from clipmill.config import Config
from clipmill.cropping import NO_MARGINS, Cropper, Margins
from clipmill.errors import SourceError
from clipmill.motion import MotionConfig, MotionMeter
from clipmill.motion_bucket import motion_bucket
from curation.dataset.schemas import SIGNAL_COLUMNS
from curation.inputs.captions import captions_of_clips, read_supplied
from curation.inputs.stats import Source, open_source
from curation.scan.part_times import PartTimes
from curation.scan.restarts import NO_PTS, Restarts
from curation.scan.rows import (
    clip_columns,
    displayed_columns,
    identity,
    note,
    refused_columns,
    shown_shares,
    source_columns,
    transition_columns,
)
from curation.scan.thumbnail_spool import ThumbnailSpool, cropped
from curation.scan.wire import MOST_ITEMS
from curation.scores.columns import FAILED
from curation.shots.cuts import CutConfig, CutDetector, Transition
from curation.shots.damage import damage, merge
from curation.shots.spans import (
    BROADCAST_CONTAINERS,
    REMUX_CODECS,
    REMUX_CONTAINERS,
    REMUX_PIXEL_FORMATS,
    Span,
    SpanConfig,
    Timeline,
    plan_spans,
)
from curation.video.bars import BarMeter
from curation.video.decode import Limits, Video
from curation.video.fields import PROGRESSIVE, FieldMeter, Fields, deinterlaced_one
from curation.video.info import VideoInfo
from curation.video.packets import PacketIndex
from curation.video.resize import FrameResizer
from curation.video.timed import Frame


class ScanConfig(Config):
    """Scan settings, each group owned by the module that uses it."""

    cuts: CutConfig = Field(default_factory=CutConfig)
    """Detection of transitions between shots."""
    spans: SpanConfig = Field(default_factory=SpanConfig)
    """Division of shots into clips."""
    motion: MotionConfig = Field(default_factory=MotionConfig)
    """Motion score."""
    limits: Limits = Field(default_factory=Limits)
    """Resource limits per input."""
    thumbnail_long_side_px: int = Field(640, ge=64, le=4096)
    """Long side of the three thumbnails per clip (first, middle and last frame) that captioners and scorers see;
    smaller frames keep their size. Raise it to detect small on-screen text, at the cost of memory and time."""
    thumbnail_spacing_s: float = Field(0.25, gt=0)
    """Maximum time between the frames that are kept as thumbnail candidates. Lower it to place the thumbnails of short
    clips closer to their first, middle and last frame."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Result of a scan: a `sources` row, and per clip a `clips` row and three JPEG thumbnails (first, middle, last)."""

    source: dict[str, Any]
    clips: list[dict[str, Any]] = field(default_factory=list)
    thumbnails: list[tuple[bytes, ...]] = field(default_factory=list)
    frame_times_s: list[float] | None = None
    """Time of each frame, if asked for; the tables do not have it."""


def scan(source: Source, config: ScanConfig | None = None, frame_times: bool = False) -> Scan:
    """Decode a source once and describe it, with `frame_times` including the time of each frame.

    Raises SourceError if nothing of it is usable; RunStopped if the temporary folder cannot be written. Runs native
    code on untrusted bytes: call it through `curation.scan.isolation.Isolated` unless the file is trusted.
    """
    config = config or ScanConfig()
    started_s = time.process_time()
    if source.error is not None:
        raise source.error
    if source.size_bytes is not None and source.size_bytes > config.limits.max_bytes:
        raise SourceError("too_large", f"{source.size_bytes:,} bytes exceed the limit of {config.limits.max_bytes:,}")
    spool_bytes = min(config.limits.spool_bytes, config.limits.answer_bytes) // 2
    with (
        open_source(source.location, max_copy_bytes=config.limits.spool_bytes) as file,
        ThumbnailSpool(spool_bytes) as spool,
        Video(file, config.limits) as video,
    ):
        one_pass = OnePass(video.info, config, spool, remuxable=fits_mp4(video))
        for frame in video.frames():
            one_pass.times.lap("decode")
            one_pass.push(frame, video.packets)
        result = one_pass.describe(source, video.packets)
        if frame_times:
            result = replace(result, frame_times_s=one_pass.frame_times_s())
    result.source["scan_cpu_s"] = time.process_time() - started_s
    result.source["scan_parts_cpu_s"] = one_pass.times.cpu_s()
    return result


def rejected(source: Source, error: SourceError) -> Scan:
    """The scan of a rejected source: one row with the reason."""
    return Scan(source=identity(source) | _verdict(error))


def rejected_row(row: Mapping[str, Any], error: SourceError) -> Scan:
    """The same for a source that already has a row: only the identifying columns are kept."""
    identity_columns = {name: row.get(name) for name in ("source_id", "uri", "size_bytes", "version")}
    return Scan(source=identity_columns | _verdict(error))


def _verdict(error: SourceError) -> dict[str, Any]:
    return {"status": "rejected", "error_kind": error.kind, "error": redacted(error.message), "clips": 0}


def fits_mp4(video: Video) -> bool:
    """Whether the packets can be stored in MP4 unchanged."""
    info, extradata = video.info, bytes(video.codec_context.extradata or b"")
    # Start codes instead of lengths between the units (Annex B) would have to be rewritten.
    annex_b = info.codec in ("h264", "hevc") and not extradata.startswith(b"\x01")
    known = info.container in REMUX_CONTAINERS and info.codec in REMUX_CODECS
    return known and info.pixel_format in REMUX_PIXEL_FORMATS and not annex_b and not info.alpha


class OnePass:
    """All consumers of the frames of a source: push frames in display order, then request the rows.

    Time is measured from the first frame, because timestamps may start anywhere in 64 bits, beyond the precision of
    floating-point seconds.
    """

    def __init__(self, info: VideoInfo, config: ScanConfig, spool: ThumbnailSpool, *, remuxable: bool) -> None:
        self._info, self._config, self._spool, self._remuxable = info, config, spool, remuxable
        self._resizer = FrameResizer(info.bright_nits)
        self._cuts = CutDetector(config.cuts)
        self._motion = MotionMeter(config.motion)
        self._bars, self._crop = BarMeter(), Cropper(NO_MARGINS)
        self._thumbnail_margins: dict[int, Margins] = {}
        """pts -> what was cut off the thumbnail already."""
        self._enlarged = False
        self._fields = FieldMeter()
        self._before: Frame | None = None
        self._previous: Frame | None = None
        self._shapes: list[tuple[int, VideoInfo, tuple[int, int]]] = []
        self._frame_pts: list[int] = []
        self._key_pts: list[int] = []
        self._stamps = array("q")
        """The container's timestamps of all frames."""
        self._joints: set[int] = set()
        self._last_duration = 0
        self.times = PartTimes()

    def push(self, frame: Frame, packets: PacketIndex) -> None:
        """Process the next frame; `packets` are those read so far."""
        av_frame, time_s = frame.av_frame, self._elapsed_s(frame.pts)
        small = self._resizer.small_luma(av_frame)
        self._cuts.push(frame.index, frame.pts, time_s, small)
        barred = self._bars.push(small)
        self.times.lap("cuts")
        if self._motion.wants(time_s):
            self._measure_motion(frame, time_s, barred=barred)
            self.times.lap("motion")
        self._keep_thumbnail(self._before, self._previous, frame, time_s)
        self.times.lap("thumbnails")
        self._before, self._previous = self._previous, frame
        shape = frame.info, (av_frame.width, av_frame.height)
        if not self._shapes or self._shapes[-1][1:] != shape:
            self._shapes.append((frame.index, *shape))
        if av_frame.key_frame:
            self._key_pts.append(frame.pts)
        if frame.joint:
            self._joints.add(frame.index)
        self._frame_pts.append(frame.pts)
        self._stamps.append(av_frame.pts if av_frame.pts is not None else NO_PTS)
        self._last_duration = av_frame.duration or 0
        if self._spool.crowded:
            self._make_room(packets)

    def describe(self, source: Source, packets: PacketIndex) -> Scan:
        """The rows and thumbnails. Raises SourceError if there were no frames."""
        if not self._frame_pts:
            raise SourceError("decode_error", "no frame could be decoded")
        self._keep_thumbnail(self._before, self._previous, None, float("inf"))
        info, timeline = self._info, self._timeline(packets)
        transitions = merge(self._cuts.finish(), self._certain(timeline, packets))
        plan = plan_spans(timeline, transitions, self._config.spans, changes=self._changes)
        changes = np.array(self._cuts.frame_rms_changes, np.float32)
        for cut in transitions:  # not what repeats are told by
            changes[cut.start_frame : cut.end_frame + 1] = 0
        row = identity(source) | source_columns(info, timeline, packets, plan, changes)
        row["interlaced"] = self._fields.verdict
        row["note"] = note(info, timeline, packets, plan, self._config.spans, self._spool.note, self._fields.verdict)
        row["transitions"] = [transition_columns(transition, timeline) for transition in transitions]
        refused = self._cuts.refused.outside(transitions)
        row["refused_cuts"] = [refused_columns(cut, timeline) for cut in refused]
        signals = (self._cuts.frame_changes, self._cuts.frame_brightness)
        fit = len(self._frame_pts) <= MOST_ITEMS  # in the lists that a child may answer with
        row |= {name: list(values) if fit else None for name, values in zip(SIGNAL_COLUMNS, signals, strict=True)}
        restarts = Restarts(timeline, packets, self._stamps) if packets.rebuilt else None
        clips, thumbnails = [], []
        for span in plan.spans:
            (shown_info, size), margins = self._shape(span.start_frame), self._margins(span, timeline)
            clip = clip_columns(source, info, timeline, packets, span, changes)
            clip |= displayed_columns(shown_info, size, margins)
            clip["resume"] = restarts.of(span) if restarts else None
            clip["interlaced"] = self._fields.between(span.start_pts, span.end_pts)
            region_px = clip["width"], clip["height"]
            clip["motion"], clip["motion_error"] = self._motion.between(span.start_pts, span.end_pts, region_px)
            clip["motion_error_kind"] = FAILED if clip["motion_error"] else None
            clip["motion_bucket"] = motion_bucket(clip["motion"])
            clip["thumbnail_pts"], jpegs = self._spool.first_middle_last(span.start_pts, span.end_pts)
            thumbnails.append(
                tuple(
                    self._framed(jpeg, self._thumbnail_margins.get(pts, NO_MARGINS), margins, shown_info, size)
                    for jpeg, pts in zip(jpegs, clip["thumbnail_pts"], strict=True)
                )
            )
            clips.append(clip)
        clips_s = [(self._elapsed_s(span.start_pts), self._elapsed_s(span.end_pts)) for span in plan.spans]
        supplied = read_supplied(source, info.metadata)
        row["metadata"] = supplied.metadata
        captions = captions_of_clips(supplied.captions, clips_s)
        for clip, chosen in zip(clips, captions, strict=True):
            clip["captions"] = [asdict(caption) for caption in chosen]
        return Scan(source=row, clips=clips, thumbnails=thumbnails)

    def frame_times_s(self) -> list[float] | None:
        """Timestamp of each frame in seconds; None for more frames than a child may answer with."""
        base = self._info.time_base
        return [float(pts * base) for pts in self._frame_pts] if len(self._frame_pts) <= MOST_ITEMS else None

    def _elapsed_s(self, pts: int) -> float:
        """Seconds from the first frame to a timestamp."""
        base = self._info.time_base
        return (pts - self._frame_pts[0]) * base.numerator / base.denominator if self._frame_pts else 0.0

    def _keep_thumbnail(self, before: Frame | None, frame: Frame | None, after: Frame | None, next_s: float) -> None:
        """Keep a frame as thumbnail candidate if none is close enough to the next frame. The first one waits until its
        fields can be told from three frames."""
        if frame is None or (before is None and after is not None):
            return
        first = before if before is not None and before.index == 0 else None
        if first is None and not self._spool.due(next_s, self._config.thumbnail_spacing_s):
            return
        look = None
        if before is not None and after is not None:
            look = self._fields.look(frame.pts, before.av_frame, frame.av_frame, after.av_frame)
        fields = self._fields.of(look)
        if first is not None:
            self._add_thumbnail(None, first, frame, fields)
        if self._spool.due(next_s, self._config.thumbnail_spacing_s):
            self._add_thumbnail(before, frame, after, fields)

    def _add_thumbnail(self, before: Frame | None, frame: Frame, after: Frame | None, fields: Fields) -> None:
        av_frame = deinterlaced_one(
            frame.av_frame, before.av_frame if before else None, after.av_frame if after else None, fields
        )
        long_side_px = self._config.thumbnail_long_side_px
        if self._bars.steady_at(frame.index):
            self._thumbnail_margins[frame.pts] = self._crop.margins
            av_frame = self._crop(av_frame)
        elif self._bars.steady:  # large enough in case that they are cut off
            shown = self._crop(av_frame)
            enlarged = max(av_frame.width, av_frame.height) / max(shown.width, shown.height)
            long_side_px, self._enlarged = round(enlarged * long_side_px), True
        bgr = self._resizer.upright_bgr(av_frame, frame.info, long_side_px=long_side_px)
        self._spool.add(frame.pts, self._elapsed_s(frame.pts), bgr)

    def _framed(self, jpeg: bytes, cut_off: Margins, bars: Margins, info: VideoInfo, size: tuple[int, int]) -> bytes:
        """A thumbnail without the bars of its clip, whatever was cut off when it was taken."""
        if cut_off == bars and (bars or not self._enlarged):
            return jpeg
        return cropped(jpeg, shown_shares(info, size, bars, cut_off), self._config.thumbnail_long_side_px)

    def _make_room(self, packets: PacketIndex) -> None:
        """Drop the thumbnail candidates that no clip can use: of completed shots, all but three per clip."""
        timeline = self._timeline(packets)
        seen, settled = self._cuts.settled()
        transitions = merge(seen, self._certain(timeline, packets))
        over = [t for t in transitions if t.end_frame < settled]
        decided_pts = over[-1].start_pts if over else timeline.bound_pts(0)
        plan = plan_spans(timeline, transitions, self._config.spans, changes=self._changes)
        spans = [(s.start_pts, s.end_pts) for s in plan.spans if s.cut_end_pts <= decided_pts]
        self._spool.drop_decided(spans, decided_pts)

    def _certain(self, timeline: Timeline, packets: PacketIndex) -> list[Transition]:
        """What is known without looking: a change of frame size, orientation or pixel aspect and the start of another
        recording are cuts."""
        cuts = self._joints | {index for index, *_ in self._shapes[1:]}
        return [
            *damage(timeline, packets),
            *(
                Transition(
                    kind="hard",
                    start_frame=index,
                    end_frame=index,
                    start_pts=timeline.bound_pts(index),
                    end_pts=timeline.bound_pts(index),
                )
                for index in sorted(cuts)
            ),
        ]

    def _measure_motion(self, frame: Frame, time_s: float, *, barred: bool) -> None:
        """Of what is between the bars, if there are any."""
        self._bars.look(*self._resizer.full_luma(frame.av_frame) if barred else (None,))
        if self._bars.steady != self._crop.margins:
            self._crop = Cropper(self._bars.steady)
        shown = self._crop(frame.av_frame)
        luma = self._resizer.luma(shown, frame.info, short_side_px=self._config.motion.short_side_px)
        width = max(1, round(shown.width * frame.info.sample_aspect_ratio))
        self._motion.push(frame.pts, time_s, luma, frame.info.orientation.shown_size(width, shown.height))

    def _margins(self, span: Span, timeline: Timeline) -> Margins:
        """The bars of the clip that the cuts asked for, of which the extracted one is a part."""
        return self._bars.between(timeline.frame_at(span.cut_start_pts), timeline.frame_at(span.cut_end_pts))

    def _changes(self, first: int, last: int) -> bool:
        """Whether frames are not shown as they are stored in a way that packets cannot say."""
        info, _ = self._shape(first)
        return bool(info.margins or info != self._info or self._bars.between(first, last))

    def _shape(self, frame: int) -> tuple[VideoInfo, tuple[int, int]]:
        """Geometry, width and height of a decoded frame."""
        begun = bisect_right(self._shapes, frame, key=lambda shape: shape[0])
        return self._shapes[begun - 1][1:]

    def _timeline(self, packets: PacketIndex) -> Timeline:
        info = self._info
        frame_pts = np.array(self._frame_pts, np.int64)
        usual = int(np.median(np.diff(frame_pts))) if len(frame_pts) > 1 else 1
        duration = self._last_duration if 2 * self._last_duration >= usual else usual
        longest = max(1, int(self._config.limits.max_duration_s / info.time_base))
        stamped = [pts for pts in packets.pts if pts is not None]
        complete = len(stamped) == len(packets.pts)
        flagged = {pts for pts, key in zip(packets.pts, packets.is_key, strict=True) if key}
        stamp_of = dict(zip(self._frame_pts, self._stamps, strict=True)) if packets.rebuilt else {}
        keys = ((pts, stamp_of.get(pts, pts)) for pts in self._key_pts)
        return Timeline(
            time_base=info.time_base,
            frame_pts=frame_pts,
            end_pts=int(frame_pts[-1]) + min(max(1, duration), longest),
            key_pts=np.array([pts for pts, stamp in keys if stamp == NO_PTS or stamp in flagged], np.int64),
            packet_pts=np.array(stamped if complete else [], np.int64),
            remuxable=complete and not packets.rebuilt and self._remuxable and self._fields.verdict == PROGRESSIVE,
            holds=info.container not in BROADCAST_CONTAINERS,
        )
