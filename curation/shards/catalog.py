"""The rows of a shard folder's clips.parquet, made from its plans and records."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clipmill.columns import with_values
from clipmill.public import public_text
from clipmill.shard_folder import ShardRecord
from curation.dataset.schemas import CLIPS, SOURCES
from curation.shards.places import PLACE, files_of
from curation.shards.sample import caption_of, clip_of

if TYPE_CHECKING:
    from curation.shards.write import ShardPlan

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
    for name in clips.column_names:
        if name == "metadata" or (name not in _OWN and pa.types.is_string(clips.schema.field(name).type)):
            clips = with_values(clips, name, [_public_value(value) for value in clips[name].to_pylist()])
    if "captions" in clips.column_names:
        without = [[caption | {"error": None} for caption in row or ()] for row in clips["captions"].to_pylist()]
        clips = with_values(clips, "captions", without)
    return clips


def _places(record: ShardRecord, clips: pa.Table) -> pa.Table:
    assert record.members is not None
    texts = clips.select([name for name in ("caption", "captions") if name in clips.column_names])
    rows = []
    for i, captions in enumerate(texts.to_pylist() or [{}] * clips.num_rows):
        rows.append(
            {
                "key": record.members.keys[i],
                "shard": record.name,
                "shard_bytes": record.bytes,
                **files_of(record, i),
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
