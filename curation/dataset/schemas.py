"""Columns of the tables; each field's metadata states its meaning, unit and polarity.

The tables in docs/format.md are generated from here: `python -m curation.dataset.schemas docs/format.md`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from clipmill.columns import column
from curation.scores.columns import EMBEDDING_COLUMNS, SCORE_COLUMNS, error_kind_column

SIGNAL_COLUMNS = ("frame_changes", "frame_brightness")
"""Columns of a source with a number per frame: what the cut detectors look at."""
SCAN_PARTS = ("decode", "cuts", "motion", "thumbnails")
"""Parts of a scan whose CPU time is counted."""
_TRANSITION = pa.struct(
    [
        ("kind", pa.string()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
    ]
)
_OF_SCORERS = (
    *EMBEDDING_COLUMNS,
    *(field for name, columns in SCORE_COLUMNS.items() for field in (*columns, error_kind_column(name))),
)
_CAPTION = pa.struct(
    [("source", pa.string()), ("text", pa.string()), ("error_kind", pa.string()), ("error", pa.string())]
)


_DISTINCT_FPS = column(
    "distinct_fps",
    pa.float64(),
    "rate of different pictures: fps without repeats, as of 24 fps film in a 60 fps file or a screen recording; fps "
    "where nothing moves",
    unit="frames/s",
)
_TIMESTAMPS = column(
    "timestamps",
    pa.string(),
    "container if all times of the source are the container's timestamps; rebuilt if some were missing, repeated, out "
    "of order or of another recording joined to the first",
)

_INTERLACED = (
    "as seen in the frames: progressive, tff or bff (interlaced, top or bottom field first), telecine_tff or "
    "telecine_bff (film in interlaced video)"
)

SOURCES = pa.schema(
    [
        column("source_id", pa.string(), "16 hex digits: hash of uri, size and version"),
        column("uri", pa.string(), "where the video was read from"),
        column("size_bytes", pa.int64(), "file size", unit="bytes"),
        column("version", pa.string(), "version of the file at this uri: etag or modification time"),
        column(
            "metadata",
            pa.map_(pa.string(), pa.string()),
            "metadata supplied with the video: license, author, id, tags, ... from a list or a sidecar. In "
            "the joined view, each name is a column",
        ),
        column(
            "captions",
            pa.list_(_CAPTION),
            "captions supplied with the video, each once, whichever clips it describes; one that could not be read "
            "has no text, but error_kind and error. In the joined view, `captions` are those of the clip",
        ),
        column("container", pa.string(), "FFmpeg's name of the container format"),
        column("stream_index", pa.int32(), "index of the video stream that was read, among all streams of the file"),
        column(
            "other_video_streams",
            pa.int32(),
            "number of further video streams, such as a cover, thumbnails, a second view; they are not read",
        ),
        column("codec", pa.string(), "FFmpeg's name of the video codec"),
        column("pixel_format", pa.string(), "FFmpeg's name of the decoded pixel format"),
        column("transfer", pa.string(), "FFmpeg's name of the transfer characteristics; null if the stream is silent"),
        column("primaries", pa.string(), "FFmpeg's name of the colour primaries; null if the stream is silent"),
        column("matrix", pa.string(), "FFmpeg's name of the YUV matrix; null if the stream is silent"),
        column("range", pa.string(), "tv (limited) or pc (full); null if the stream is silent"),
        column("hdr", pa.bool_(), "whether the transfer is PQ (smpte2084) or HLG (arib-std-b67)"),
        column(
            "bright_nits",
            pa.float64(),
            "of HDR: 99th percentile of the brightest channel over some keyframes; sets the white of the tone map",
            unit="nits",
        ),
        column("bit_depth", pa.int32(), "bits per component of the decoded frames", unit="bits"),
        column("interlaced", pa.string(), _INTERLACED),
        column("width", pa.int32(), "displayed width: rotation and pixel aspect applied", unit="px"),
        column("height", pa.int32(), "displayed height: rotation and pixel aspect applied", unit="px"),
        column("rotation", pa.int32(), "clockwise rotation that makes a decoded frame upright", unit="degrees"),
        column("mirrored", pa.bool_(), "whether a decoded frame is mirrored left to right before it is rotated"),
        column("fps", pa.float64(), "measured: (frames - 1) / (last pts - first pts)", unit="frames/s"),
        column("variable_fps", pa.bool_(), "whether the intervals between frames differ"),
        _DISTINCT_FPS,
        column("duration_s", pa.float64(), "measured: first frame to end of the last frame", unit="s"),
        column("start_s", pa.float64(), "timestamp of the first frame; often not 0", unit="s"),
        _TIMESTAMPS,
        column("frames", pa.int64(), "number of decodable frames"),
        column(
            "keyframes",
            pa.int64(),
            "number of frames at which decoding can start, by packet flag and decoder",
        ),
        column("audio", pa.bool_(), "whether there is an audio stream"),
        column(
            "audio_codec",
            pa.string(),
            "codec of the audio stream that `shard --audio keep` takes: no commentary, the container's default",
        ),
        column("audio_channels", pa.int32(), "channels of that stream"),
        column("audio_rate_hz", pa.int32(), "sample rate of that stream", unit="Hz"),
        column("alpha", pa.bool_(), "whether frames have an alpha channel: what is transparent is shown on black"),
        column("status", pa.string(), "ok or rejected"),
        column("error_kind", pa.string(), "kind of error that rejected the source, from a fixed set"),
        column("error", pa.string(), "error message of a rejected source"),
        column("note", pa.string(), "note on a source that is ok: unreadable parts, or why it yields no clips"),
        column("clips", pa.int64(), "number of clips of this source"),
        column("clip_s", pa.float64(), "footage in clips", unit="s"),
        column("lost_transition_s", pa.float64(), "footage dropped for transitions", unit="s"),
        column(
            "lost_blank_s",
            pa.float64(),
            "footage dropped because it is blank (black, white or uniform frames) for a second or longer",
            unit="s",
        ),
        column(
            "lost_still_s",
            pa.float64(),
            "footage dropped because one frame stands longer than `scan.spans.max_still_s`",
            unit="s",
        ),
        column("lost_short_s", pa.float64(), "footage dropped in shots that are too short", unit="s"),
        column("lost_keyframe_s", pa.float64(), "footage dropped by keyframe alignment", unit="s"),
        column(
            "lost_damage_s", pa.float64(), "footage dropped for unreadable parts and gaps in the timestamps", unit="s"
        ),
        column("transitions", pa.list_(_TRANSITION), "detected transitions, in order of time"),
        column(
            "refused_cuts",
            pa.list_(pa.struct([*_TRANSITION, ("reason", pa.string())])),
            "proposed transitions that did not pass verification, in order of time, at most 1,000; kind is hard or "
            "dissolve (any gradual change)",
        ),
        column(
            "frame_changes",
            pa.list_(pa.int16()),
            "mean change of brightness from the previous frame, per frame: what cuts are proposed from",
            unit="8-bit levels",
        ),
        column("frame_brightness", pa.list_(pa.int16()), "mean brightness per frame", unit="8-bit levels"),
        column(
            "scan_cpu_s", pa.float64(), "CPU time of the scan: probing, cut detection, motion, thumbnails", unit="s"
        ),
        column(
            "scan_parts_cpu_s",
            pa.struct([(part, pa.float64()) for part in SCAN_PARTS]),
            "of scan_cpu_s, what decoding, cut detection, motion and thumbnails took",
            unit="s",
        ),
        column("score_cpu_s", pa.float64(), "CPU time of captioners and scorers", unit="s"),
    ]
)
"""One row per input, usable or not. clip_s + lost_*_s = duration_s."""

CLIPS = pa.schema(
    [
        column("clip_id", pa.string(), "source_id-start_pts-end_pts, with m for a minus sign; holds no dot"),
        column("source_id", pa.string(), "source of the clip"),
        column("uri", pa.string(), "uri of the source"),
        column(
            "extraction", pa.string(), "how the clip is extracted: remux (packets unchanged) or transcode (frame-exact)"
        ),
        _TIMESTAMPS,
        column(
            "resume",
            pa.struct(
                [
                    ("packet", pa.int64()),
                    ("frames", pa.int64()),
                    ("stamps", pa.list_(pa.int64())),
                    ("pts", pa.list_(pa.int64())),
                ]
            ),
            "of a rebuilt time line: where in the order of packets, from 0, decoding starts for this clip, how many "
            "frames come before it, and the container's timestamps and the rebuilt ones of its frames; null: from the "
            "first packet",
        ),
        column("time_base_num", pa.int32(), "numerator of the seconds per pts unit"),
        column("time_base_den", pa.int32(), "denominator of the seconds per pts unit"),
        column("cut_start_pts", pa.int64(), "start of the span between cuts", unit="pts"),
        column("cut_end_pts", pa.int64(), "end of the span between cuts, exclusive", unit="pts"),
        column("start_pts", pa.int64(), "timestamp of the first frame", unit="pts"),
        column("end_pts", pa.int64(), "end of the last frame, exclusive", unit="pts"),
        column("cut_start_s", pa.float64(), "cut_start_pts in seconds", unit="s"),
        column("cut_end_s", pa.float64(), "cut_end_pts in seconds", unit="s"),
        column("start_s", pa.float64(), "start_pts in seconds", unit="s"),
        column("end_s", pa.float64(), "end_pts in seconds", unit="s"),
        column("duration_s", pa.float64(), "end_s - start_s", unit="s"),
        column("start_frame", pa.int64(), "index of the first frame in the source, in display order, from 0"),
        column("frames", pa.int64(), "number of frames in the clip"),
        column("fps", pa.float64(), "(frames - 1) / (last pts - first pts) of the clip", unit="frames/s"),
        column("variable_fps", pa.bool_(), "whether the intervals between frames differ"),
        _DISTINCT_FPS,
        column(
            "distinct_frames",
            pa.list_(pa.int32()),
            "indices in the clip of the frames that show a new picture; null if all do",
        ),
        column("width", pa.int32(), "displayed width: rotation and pixel aspect applied, without bars", unit="px"),
        column("height", pa.int32(), "displayed height: rotation and pixel aspect applied, without bars", unit="px"),
        column("crop_left", pa.int32(), "width of the bar at the left of the displayed frame, 0 if none", unit="px"),
        column("crop_top", pa.int32(), "height of the bar at its top", unit="px"),
        column("crop_right", pa.int32(), "width of the bar at its right", unit="px"),
        column("crop_bottom", pa.int32(), "height of the bar at its bottom", unit="px"),
        column("codec", pa.string(), "FFmpeg's name of the source's video codec"),
        column("interlaced", pa.string(), f"{_INTERLACED}; all but progressive is deinterlaced and transcoded"),
        column(
            "source_captions",
            pa.list_(pa.int32()),
            "those of its source's `captions` that describe the clip, by their position, from 0",
        ),
        column(
            "motion",
            pa.float32(),
            "mean optical flow at 2 frames/s over the clip, in percent of the frame's shorter side per second",
            unit="%/s",
            better="higher",
        ),
        column("motion_error", pa.string(), "error message if motion is null"),
        error_kind_column("motion"),
        column("motion_bucket", pa.int16(), "motion bucket of SVD's conditioning: 127 is 10 %/s", unit="0 to 255"),
        column("fps_id", pa.int32(), "frame rate id of SVD's conditioning: distinct_fps rounded, minus 1"),
        *_OF_SCORERS,
        column(
            "thumbnail_pts",
            pa.list_(pa.int64()),
            "timestamps of the first, middle and last frame that scorers see as thumbnails",
            unit="pts",
        ),
    ]
)
"""One row per clip. If a score is null, its `_error` and `_error_kind` columns have the reason."""

SCAN_COLUMNS = tuple(name for name in CLIPS.names if name not in {field.name for field in _OF_SCORERS})
"""Clip columns filled by the scan; the CLIP embedder and the scorers fill the others."""

PREVIEWS = pa.schema(
    [
        column("clip_id", pa.string(), "clip of the previews"),
        column("first", pa.binary(), "JPEG of its first frame, long side at most 320 px"),
        column("middle", pa.binary(), "JPEG of its middle frame"),
        column("last", pa.binary(), "JPEG of its last frame"),
    ]
)
"""Previews of each clip, for browsing."""


SCHEMAS: Mapping[str, pa.Schema] = MappingProxyType({"sources": SOURCES, "clips": CLIPS, "previews": PREVIEWS})


def source_of(clip_id: str) -> str:
    """The source id in a clip id."""
    return clip_id.partition("-")[0]


def with_column_tables(document: str) -> str:
    """Regenerate each block `<!-- columns of NAME -->` ... `<!-- end -->` of a Markdown document."""
    for name, schema in SCHEMAS.items():
        start, end = f"<!-- columns of {name} -->\n", "<!-- end -->"
        before, _, rest = document.partition(start)
        document = before + start + columns_table(schema) + end + rest.partition(end)[2]
    return document


def columns_table(schema: pa.Schema) -> str:
    """The columns of a schema as a Markdown table: name, type, unit, polarity, meaning."""
    lines = ["| column | type | unit | better | meaning |", "| --- | --- | --- | --- | --- |"]
    for field in schema:
        metadata = {key.decode(): value.decode() for key, value in field.metadata.items()}
        cells = (f"`{field.name}`", f"`{field.type}`", metadata["unit"], metadata["better"], metadata["meaning"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(with_column_tables(Path(name).read_text()))
