"""clips.parquet of a shard folder: a row per sample with its caption, scores, and the bytes of its files in their tar.

With it a few clips are read out of terabytes by range, and no tar is opened to find them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill import storage
from clipmill.columns import column
from clipmill.errors import UserError
from clipmill.public import public_text
from clipmill.shard_folder import ShardRecord
from curation.dataset.schemas import CLIPS, SOURCES
from curation.shards.sample import caption_of, clip_of

if TYPE_CHECKING:
    from curation.shards.write import ShardPlan

CATALOG = "clips.parquet"

_FILE = pa.struct([("extension", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
PLACE = pa.schema(
    [
        column("key", pa.string(), "name of the sample: the clip id; of several pictures of a clip also their number"),
        column("shard", pa.string(), "file name of the tar"),
        column("shard_bytes", pa.int64(), "size of the tar", unit="bytes"),
        column("extension", pa.string(), "extension of the video or picture"),
        column("offset", pa.int64(), "where the video or picture starts in the tar", unit="bytes"),
        column("size", pa.int64(), "its size", unit="bytes"),
        column("files", pa.list_(_FILE), "all files of the sample: extension, offset and size in the tar"),
        column("caption", pa.string(), "caption in the .txt; empty if the clip has none"),
    ]
)
"""The columns that say where a sample lies; those of the dataset's clip follow."""
_TEXT = ("txt", "json")
_NOT_PUBLIC = ("uri", "error", "note")
_OWN = {*CLIPS.names, *SOURCES.names, "root", "path", "caption"}
"""Columns whose texts are clipmill's own words, or public already."""


def catalog(plans: "Sequence[ShardPlan]", records: Mapping[str, ShardRecord]) -> pa.Table:
    """The samples in the order of the shards: `PLACE`, and every column that the plans have.

    `records` by the name of their shard. Raises ValueError for a record without byte ranges.
    """
    tables = []
    for plan in plans:
        record = records[plan.name]
        if record.members is None:
            raise ValueError(f"the record of {plan.name} has no byte ranges")
        row_of = {clip_id: row for row, clip_id in enumerate(plan.clips["clip_id"].to_pylist())}
        rows = pa.array([row_of[clip_of(key)] for key in record.members.keys], pa.int64())
        clips = public_columns(plan.clips.take(rows))
        tables.append(_beside(clips, _places(record, clips)))
    return pa.concat_tables(tables, promote_options="permissive") if tables else PLACE.empty_table()


def public_columns(clips: pa.Table) -> pa.Table:
    """Without what belongs to the machine that curated: absolute addresses, sentences of errors, paths in texts."""
    clips = clips.drop_columns([name for name in clips.column_names if name in _NOT_PUBLIC or name.endswith("_error")])
    for at, name in enumerate(clips.column_names):
        if name == "metadata" or (name not in _OWN and pa.types.is_string(clips.schema.field(name).type)):
            values = [_public_value(value) for value in clips[name].to_pylist()]
            clips = clips.set_column(at, clips.schema.field(name), pa.array(values, clips.schema.field(name).type))
    if "captions" in clips.column_names:
        without = [[caption | {"error": None} for caption in row or ()] for row in clips["captions"].to_pylist()]
        at, field = clips.column_names.index("captions"), clips.schema.field("captions")
        clips = clips.set_column(at, field, pa.array(without, field.type))
    return clips


def write_catalog(folder_url: str, table: pa.Table) -> None:
    """Write clips.parquet atomically. Raises UserError if that fails."""
    fs, folder = storage.filesystem(folder_url)
    with storage.atomic_write(fs, f"{folder}/{CATALOG}") as file:
        pq.write_table(table, file, compression="zstd")


def has_catalog(folder_url: str) -> bool:
    """Whether the folder has a clips.parquet."""
    fs, folder = storage.filesystem(folder_url)
    return storage.exists(fs, f"{folder}/{CATALOG}")


def check_catalog(folder_url: str) -> None:
    """Raise UserError if the folder has no clips.parquet."""
    if not has_catalog(folder_url):
        raise UserError(
            f"{folder_url} has no {CATALOG}: expected a folder that `clipmill shard` has finished; rerun it, and it "
            "writes what is missing"
        )


def _places(record: ShardRecord, clips: pa.Table) -> pa.Table:
    assert record.members is not None
    texts = clips.select([name for name in ("caption", "captions") if name in clips.column_names])
    rows = []
    for i, captions in enumerate(texts.to_pylist() or [{}] * clips.num_rows):
        ranges = {extension: found[i] for extension, found in record.members.ranges.items()}
        files = [(extension, *found) for extension, found in sorted(ranges.items()) if found is not None]
        extension, offset, size = next(file for file in files if file[0] not in _TEXT)
        rows.append(
            {
                "key": record.members.keys[i],
                "shard": record.name,
                "shard_bytes": record.bytes,
                "extension": extension,
                "offset": offset,
                "size": size,
                "files": [dict(zip(("extension", "offset", "size"), file, strict=True)) for file in files],
                "caption": caption_of(captions),
            }
        )
    return pa.Table.from_pylist(rows, PLACE)


def _public_value(value: Any) -> Any:
    if isinstance(value, str):
        return public_text(value)
    return [(name, public_text(text)) for name, text in value] if value is not None else None


def _beside(clips: pa.Table, places: pa.Table) -> pa.Table:
    """`clip_id`, the places, and the other columns of the clips. A column of the same name as a place is left out."""
    for name in ("clip_id", *clips.column_names):
        if name not in places.column_names:
            at = 0 if name == "clip_id" else places.num_columns
            places = places.add_column(at, clips.schema.field(name), clips[name])
    return places
