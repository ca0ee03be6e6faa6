"""Clips that the shards of their selection hold already: their files are copied by range, not extracted again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill import storage
from clipmill.config import Config
from clipmill.errors import RunStopped, UserError
from clipmill.formats import SHARDS
from clipmill.range_reader import Pieces, RangeReader
from clipmill.ranges import StoredObject, find_object
from clipmill.resume import deciding
from clipmill.shard_folder import read_index
from curation.shards.clip_row import ExtractedClip
from curation.shards.places import CATALOG, has_catalog
from curation.shards.sample import MEASURED

if TYPE_CHECKING:
    from curation.shards.write import ShardPlan

DECIDING = (
    *("clip_id", "source_id", "extraction", "timestamps", "resume", "time_base_num", "time_base_den", "start_pts"),
    *("end_pts", "frames", "fps", "variable_fps", "width", "height", "interlaced"),
    *("crop_left", "crop_top", "crop_right", "crop_bottom"),
)
"""Columns that decide about a clip's file: those that its extraction reads."""
_PLACE = ("shard", "shard_bytes", "files")
_RETRY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ExistingClips:
    """Clips in a complete folder of shards whose files are those that extraction would give."""

    folder_url: str
    places: Mapping[str, Mapping[str, Any]]
    """Clip id -> `shard`, `shard_bytes` and `files`, as in `curation.shards.places.PLACE`."""

    def read(self, clip_id: str) -> ExtractedClip | None:
        """The clip as it was extracted; None if its tar is missing, was replaced or is of another version of clipmill.

        Raises RunStopped if a store does not answer.
        """
        place = self.places[clip_id]
        ranges = {file["extension"]: (file["offset"], file["size"]) for file in place["files"]}
        try:
            stored = _shard(self.folder_url, place["shard"])
            if stored.size_bytes != place["shard_bytes"]:
                return None
            pieces = Pieces(stored=stored, ranges=(ranges["mp4"], ranges["json"]))
            content, text = _reader().submit([pieces])[0].result()
            return _extracted(clip_id, content, json.loads(text))
        except RunStopped:
            raise
        except (OSError, UserError, ValueError, KeyError, TypeError):
            return None


def with_existing(plans: "Sequence[ShardPlan]", folder_url: str, config: Config) -> "list[ShardPlan]":
    """The plans with those of their clips that are in the shards of a folder, if these are complete and were extracted
    with the settings `config` (`ExtractionConfig`)."""
    fs, folder = storage.filesystem(folder_url)
    if not plans or not _has_settings(folder_url, config):
        return [*plans]
    with fs.open(f"{folder}/{CATALOG}", "rb") as file:
        if not {*DECIDING, *_PLACE} <= {*pq.read_schema(file).names}:
            return [*plans]
        table = pq.read_table(file, columns=[*DECIDING, *_PLACE])
    row_of = {clip_id: row for row, clip_id in enumerate(table["clip_id"].to_pylist())}
    found = []
    for plan in plans:
        planned = [row for row in plan.clips.select(DECIDING).to_pylist() if row["clip_id"] in row_of]
        there = table.take(pa.array([row_of[row["clip_id"]] for row in planned], pa.int64())).to_pylist()
        places = {
            row["clip_id"]: {name: other[name] for name in _PLACE}
            for row, other in zip(planned, there, strict=True)
            if all(row[name] == other[name] for name in DECIDING)
        }
        found.append(replace(plan, existing=ExistingClips(folder_url=folder_url, places=places)))
    return found


def _has_settings(folder_url: str, config: Config) -> bool:
    try:
        index = read_index(folder_url, SHARDS)
    except UserError:  # damaged, or of an older format
        return False
    if index is None or index.get("kind") != "clips" or not has_catalog(folder_url):
        return False
    settings = deciding({"extraction": config.model_dump(mode="json")})
    return bool(index.get("config", {}).get("extraction") == settings["extraction"])


def _extracted(clip_id: str, content: bytes, metadata: Mapping[str, Any]) -> ExtractedClip | None:
    provenance = metadata["provenance"]
    if metadata["clip_id"] != clip_id or provenance["clipmill"] != version("clipmill") or content[4:8] != b"ftyp":
        return None
    measured = {score["name"]: score["value"] for score in metadata["scores"] if score["name"] in MEASURED}
    return ExtractedClip(content=content, suffix="mp4", shape=metadata["shape"] | measured, audio=metadata["audio"])


@lru_cache(maxsize=64)
def _shard(folder_url: str, name: str) -> StoredObject:
    fs, folder = storage.filesystem(folder_url)
    return find_object(storage.address(fs, f"{folder}/{name}"), retry_s=_RETRY_S)


@lru_cache(maxsize=1)
def _reader() -> RangeReader:
    return RangeReader(retry_s=_RETRY_S)
