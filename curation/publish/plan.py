"""Plan a publication: the clips of a selection with the chosen captions, divided into shards or batches of files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator

from clipmill.columns import with_values
from clipmill.config import Config, unknown_name
from clipmill.errors import UserError
from clipmill.shard_folder import FailedClip
from curation.publish.layouts import Target, bucket_of, folder_of
from curation.shards.extract import ClipRow
from curation.shards.resample import clip_duration, needs_resampling, resampled_frames
from curation.shards.sample import caption_of
from curation.shards.write import ShardConfig, ShardPlan, plan_shards

_USUAL_FPS: Mapping[Target, float] = {"diffusion-pipe": 16.0, "musubi": 16.0}
"""Wan's rate; these trainers count frames and ignore timestamps."""

_BUCKET = pa.struct([("frames", pa.int64()), ("width_px", pa.int64()), ("height_px", pa.int64())])


class PublishConfig(Config):
    """Layout and content of a published folder."""

    captions: tuple[str, ...] = ()
    """Captioners or sources of captions in order of preference, such as `coca` or `sidecar`: each clip gets its first
    caption from these. Empty: the newest caption of any."""
    fps: float | None = Field(None, gt=0, le=240)
    """Frame rate of the clips; others are resampled and transcoded. Null: 16 for diffusion-pipe and musubi, which count
    frames (16 is that of Wan; HunyuanVideo takes 24, LTX-Video 24 or 25, FramePack 30), and else each clip's own."""
    lengths: tuple[int, ...] = (17, 33, 49, 81, 121)
    """Lengths of buckets for trainers that expect them; clips shorter than all are left out. 8 n + 1 fits Wan,
    HunyuanVideo and LTX-Video."""
    resolution_px: int = Field(512, ge=64, le=4096)
    """Side of a square with as many pixels as a bucket has. Trainers resize; the files keep their size."""
    shards: ShardConfig = Field(default_factory=ShardConfig)
    """Division into shards, and extraction of the clips."""

    @field_validator("lengths")
    @classmethod
    def _some(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if not lengths or min(lengths) < 2:
            raise ValueError(f"expected lengths of at least 2 frames, got {list(lengths)}")
        return lengths

    def rate(self, to: Target) -> Fraction | None:
        """Frame rate to resample to; None to leave every clip at its own."""
        fps = self.fps or _USUAL_FPS.get(to)
        return None if fps is None or to == "hf" else Fraction(fps).limit_denominator(1001)


@dataclass(frozen=True, kw_only=True)
class PublishPlan:
    """What to write. selected = clips in `plans` + `left_out`."""

    to: Target
    plans: tuple[ShardPlan, ...]
    """For file layouts, the rows have the columns `folder`, `bucket` and `file_frames`."""
    left_out: tuple[FailedClip, ...]

    @property
    def clips(self) -> pa.Table:
        """The rows of all clips."""
        return pa.concat_tables([plan.clips for plan in self.plans])


def plan_publication(rows: pa.Table, gone: Sequence[FailedClip], *, to: Target, config: PublishConfig) -> PublishPlan:
    """Choose captions, assign clips to buckets and divide them.

    Raises UserError if no clip has captions of a chosen source, or if every clip is too short.
    """
    rows = _with_captions(rows, config.captions)
    left_out = list(gone)
    if to != "hf":
        rows, too_short = _with_folders(rows, to, config)
        left_out += too_short
    return PublishPlan(
        to=to,
        plans=tuple(plan_shards(rows, kind="clips", config=config.shards)),
        left_out=tuple(left_out),
    )


def published_frames(clip: ClipRow, fps: Fraction | None) -> int:
    """Number of frames of the file of a clip, with its bucket."""
    if fps is not None and needs_resampling(clip, fps):
        return resampled_frames(clip_duration(clip), fps)
    return int(clip["frames"])


def _with_captions(rows: pa.Table, sources: Sequence[str]) -> pa.Table:
    """The captions of the chosen sources alone, in that order. A source matches with and without what follows its
    colon: `chat` stands for `chat:model`."""
    if not sources:
        return rows
    given = rows["captions"].to_pylist()
    known = {name for captions in given for c in captions or () for name in _names(c["source"])}
    for source in sources:
        if source not in known:
            raise UserError(unknown_name("source of captions", source, sorted(known)))
    chosen = [[c for source in sources for c in captions or () if source in _names(c["source"])] for captions in given]
    texts = [caption_of({"captions": captions}) or None for captions in chosen]
    return with_values(with_values(rows, "captions", chosen), "caption", texts)


def _names(source: str) -> Iterable[str]:
    return {source, source.partition(":")[0]}


def _fillable_frames(clip: ClipRow, fps: Fraction | None) -> int:
    """Number of frames of the file, whether or not the clip has to be resampled to fill its bucket."""
    frames = published_frames(clip, fps)
    return frames if fps is None else min(frames, resampled_frames(clip_duration(clip), fps))


def _with_folders(rows: pa.Table, to: Target, config: PublishConfig) -> tuple[pa.Table, list[FailedClip]]:
    fps = config.rate(to)
    kept: list[int] = []
    places: list[dict[str, Any]] = []
    too_short = []
    for i, clip in enumerate(rows.to_pylist()):
        frames = _fillable_frames(clip, fps)
        lengths = (1,) if to == "files" else config.lengths
        bucket = bucket_of(frames, clip["width"], clip["height"], lengths=lengths, resolution_px=config.resolution_px)
        if bucket is None:
            error = f"{frames} frames, fewer than the shortest length ({min(lengths)})"
            too_short.append(FailedClip(clip_id=clip["clip_id"], error_kind="too_short", error=error))
            continue
        kept.append(i)
        place = {"folder": folder_of(to, bucket), "bucket": asdict(bucket)}
        places.append(place | {"file_frames": published_frames({**clip, **place}, fps)})
    if not kept:
        raise UserError(
            f"every clip is too short: {too_short[0].error}. Set smaller `lengths`, or a higher frame rate (--fps)"
        )
    rows = rows.take(pa.array(kept, pa.int64()))
    for name, kind in (("folder", pa.string()), ("bucket", _BUCKET), ("file_frames", pa.int64())):
        rows = rows.append_column(name, pa.array([place[name] for place in places], kind))
    return rows, too_short
