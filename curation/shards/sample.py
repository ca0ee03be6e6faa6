"""The JSON of a sample: the same keys with the same types in every sample of every dataset, and never a null.

Readers such as `datasets` infer types from the first samples. What a clip may lack (a score, a caption, metadata) is
therefore an optional entry of a list, and no list is empty: a list without entries holds one with an empty name.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clipmill.public import public_text
from curation.dataset.schemas import CLIPS, SOURCES
from curation.scores.columns import SCORE_COLUMNS

if TYPE_CHECKING:
    from curation.shards.clip_row import ClipRow, ExtractedClip

_NUMBERS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))
_TEXTS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
_SPAN = ("start_pts", "end_pts", "start_s", "end_s", "duration_s", "start_frame")
_CUTS = ("cut_start_pts", "cut_end_pts", "cut_start_s", "cut_end_s")
_INTEGERS = {"start_pts", "end_pts", "start_frame", "cut_start_pts", "cut_end_pts"}
_PICTURE = [("codec", pa.string()), ("width", pa.int64()), ("height", pa.int64())]
_FRAME = [("pts", pa.int64()), ("picture", pa.int64()), ("pictures", pa.int64())]
_VIDEO = [
    ("pixel_format", pa.string()),
    ("rotation", pa.int64()),
    ("mirrored", pa.bool_()),
    ("sample_aspect_ratio", pa.string()),
    ("crop", pa.list_(pa.int64())),
    ("frames", pa.int64()),
    ("fps", pa.float64()),
    ("variable_fps", pa.bool_()),
    ("distinct_fps", pa.float64()),
    ("distinct_frames", pa.list_(pa.int64())),
]
_AUDIO = [
    ("present", pa.bool_()),
    ("codec", pa.string()),
    ("channels", pa.int64()),
    ("rate", pa.int64()),
    ("error_kind", pa.string()),
    ("source_codec", pa.string()),
    ("source_channels", pa.int64()),
    ("source_rate", pa.int64()),
]
_CONDITIONING = ("fps_id", "motion_bucket")
MEASURED = ("psnr_db",)
"""Measured for some files only; stored among the scores."""
_SCORES = {"motion", *(column.name for columns in SCORE_COLUMNS.values() for column in columns)}
_NO_SCORES = {*CLIPS.names, *SOURCES.names, "root", "path", "caption"} - _SCORES


PICTURE_MARK = "_"
"""Between the clip id, which has none, and the number of a picture, in the keys of several pictures of a clip."""


def sample_type(suffix: str) -> pa.StructType:
    """The type of the JSON beside a video ("mp4") or a picture ("jpg")."""
    shape = [*_PICTURE, *_VIDEO] if suffix == "mp4" else [*_PICTURE, *_FRAME]
    return pa.struct(
        [
            ("clip_id", pa.string()),
            ("extraction", pa.string()),
            (
                "span",
                pa.struct(
                    [("time_base", pa.list_(pa.int64())), *((name, _bound_type(name)) for name in _SPAN)],
                ),
            ),
            ("cuts", pa.struct([(name, _bound_type(name)) for name in _CUTS])),
            ("shape", pa.struct(shape)),
            *([("audio", pa.struct(_AUDIO))] if suffix == "mp4" else []),
            (
                "captions",
                pa.list_(pa.struct([("source", pa.string()), ("text", pa.string()), ("error_kind", pa.string())])),
            ),
            ("metadata", _TEXTS),
            ("conditioning", _NUMBERS),
            ("scores", _NUMBERS),
            ("labels", _TEXTS),
            (
                "provenance",
                pa.struct(
                    [(name, pa.string()) for name in ("root", "path", "source_id", "codec", "selection", "clipmill")]
                ),
            ),
        ]
    )


def sample_json(row: "ClipRow", extracted: "ExtractedClip", selection: str) -> dict[str, Any]:
    """The JSON of a clip or picture, of the type `sample_type`. `row` has the columns `root` and `path`, too."""
    scores = {key: value for key, value in row.items() if key not in _NO_SCORES}
    return {
        "clip_id": row["clip_id"],
        "extraction": row["extraction"],
        "span": {"time_base": [row["time_base_num"], row["time_base_den"]]} | _bounds(row, _SPAN),
        "cuts": _bounds(row, _CUTS),
        "shape": _shape(row, extracted),
        **({"audio": _audio(row, extracted)} if extracted.suffix == "mp4" else {}),
        "captions": _captions(row.get("captions")),
        "metadata": _texts(dict(row.get("metadata") or [])),
        "conditioning": _numbers({name: row[name] for name in _CONDITIONING}),
        "scores": _numbers(scores | {name: extracted.shape.get(name) for name in MEASURED}),
        "labels": _texts({key: value for key, value in scores.items() if not _is_error(key)}),
        "provenance": {
            "root": row["root"],
            "path": row["path"],
            "source_id": row["source_id"],
            "codec": row["codec"],
            "selection": selection,
            "clipmill": version("clipmill"),
        },
    }


def caption_of(row: "ClipRow") -> str:
    """The newest caption of a row of the joined view; of another row, the first that has text. Empty if there is
    none."""
    if "caption" in row:
        return row["caption"] or ""
    return next((caption["text"] for caption in row.get("captions") or () if caption["text"]), "")


def clip_of(key: str) -> str:
    """The clip id of a sample's key."""
    return key.partition(PICTURE_MARK)[0]


def _bound_type(name: str) -> pa.DataType:
    return pa.int64() if name in _INTEGERS else pa.float64()


def _bounds(row: "ClipRow", names: Iterable[str]) -> dict[str, Any]:
    return {name: row[name] if name in _INTEGERS else float(row[name]) for name in names}


def _shape(row: "ClipRow", extracted: "ExtractedClip") -> dict[str, Any]:
    """What is in the file. Of a clip of one frame, the rate is that at which it would be shown as long."""
    if extracted.suffix != "mp4":
        return {name: extracted.shape[name] for name, _ in (*_PICTURE, *_FRAME)}
    fps = row["fps"] or 1 / row["duration_s"]
    timing = {
        "frames": row["frames"],
        "fps": fps,
        "variable_fps": row["variable_fps"],
        "distinct_fps": row["distinct_fps"] or fps,
        "distinct_frames": list(row["distinct_frames"] or range(row["frames"])),
    }
    known = extracted.shape | timing
    return {name: known[name] for name, _ in (*_PICTURE, *_VIDEO)}


def _audio(row: "ClipRow", extracted: "ExtractedClip") -> dict[str, Any]:
    return extracted.audio | {
        "source_codec": row.get("audio_codec") or "",
        "source_channels": row.get("audio_channels") or 0,
        "source_rate": row.get("audio_rate_hz") or 0,
    }


def _captions(captions: Sequence[Mapping[str, Any]] | None) -> list[dict[str, str]]:
    """Captions without error messages, which may name local paths and stay in the dataset."""
    keys = ("source", "text", "error_kind")
    return [{key: caption[key] or "" for key in keys} for caption in captions or ()] or [dict.fromkeys(keys, "")]


def _numbers(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = [
        {"name": name, "value": float(value)}
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    return entries or [{"name": "", "value": 0.0}]


def _texts(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = [{"name": name, "value": public_text(value)} for name, value in values.items() if isinstance(value, str)]
    return entries or [{"name": "", "value": ""}]


def _is_error(column: str) -> bool:
    return column.endswith(("_error", "_error_kind"))
