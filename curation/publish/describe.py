"""The files of a publication that describe its data: card, picture, tables, Croissant, the trainer's configuration."""

import hashlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from clipmill import storage
from clipmill.shard_folder import ShardRecord
from curation.dataset.tables import Dataset
from curation.publish.card import CARD, CLIPS_FILE, SHEET, SOURCES_FILE, card
from curation.publish.croissant import CROISSANT, croissant
from curation.publish.facts import Facts, collect_facts
from curation.publish.layouts import DATA, Bucket, path_of, trainer_files
from curation.publish.picture import contact_sheet
from curation.selection.saved import load_selection
from curation.shards.catalog import catalog, public_columns
from curation.shards.places import CATALOG
from curation.shards.sample import caption_of

if TYPE_CHECKING:
    from curation.publish.plan import PublishConfig, PublishPlan


def describe_publication(
    dataset: Dataset,
    plan: "PublishPlan",
    records: Mapping[str, ShardRecord],
    folder_url: str,
    *,
    selection: str,
    config: "PublishConfig",
    models: Mapping[str, Any],
) -> Facts:
    """Write the descriptions of what `records` (by plan) say was written; each file whole, the card last.

    `models` is the content of models.json. Raises UserError if the folder cannot be written.
    """
    fs, folder = storage.filesystem(folder_url)
    written = _written(plan, records)
    failed = [clip for each in plan.plans for clip in records[each.name].failed]
    facts = collect_facts(
        dataset,
        load_selection(dataset, selection),
        written,
        left_out=[*plan.left_out, *failed],
        models=models,
        size_bytes=sum(record.bytes for record in records.values()),
    )
    table = catalog(plan.plans, records) if plan.to == "hf" else _files(written)
    table_path = f"{DATA}/{CATALOG}" if plan.to == "hf" else CLIPS_FILE
    contents = {table_path: _parquet(table), SOURCES_FILE: _csv(facts.source_list)}
    sheet = contact_sheet(dataset, written["clip_id"].to_pylist())
    if sheet is not None:
        contents[SHEET] = sheet
    tars = [(name, record.bytes, record.sha256 or "") for name, record in records.items()] if plan.to == "hf" else []
    described = croissant(
        facts,
        to=plan.to,
        table=table.schema,
        table_path=table_path,
        table_sha256=hashlib.sha256(contents[table_path]).hexdigest(),
        tars=sorted(tars),
    )
    contents[CROISSANT] = storage.json_bytes(described)
    captions = {row["clip_id"]: caption_of(row) for row in written.select(["clip_id", "caption"]).to_pylist()}
    for name, text in trainer_files(plan.to, _buckets(plan, written), captions, config.resolution_px).items():
        contents[name] = text.encode()
    contents[CARD] = card(facts, to=plan.to, config=config, has_sheet=sheet is not None).encode()
    for name, content in contents.items():
        storage.write_bytes(fs, f"{folder}/{name}", content)
    return facts


def _written(plan: "PublishPlan", records: Mapping[str, ShardRecord]) -> pa.Table:
    """The rows of the clips that were written, by clip id."""
    clips = plan.clips
    keys = {key for record in records.values() if record.members for key in record.members.keys}
    mask = pa.array([clip_id in keys for clip_id in clips["clip_id"].to_pylist()], pa.bool_())
    return clips.filter(mask).sort_by("clip_id")


def _files(written: pa.Table) -> pa.Table:
    rows = written.select(["clip_id", "folder", "caption"]).to_pylist()
    paths = pa.array([f"{DATA}/{path_of(row, 'mp4')}" for row in rows], pa.string())
    captions = pa.array([caption_of(row) for row in rows], pa.string())
    clips = public_columns(written.drop_columns(["folder", "caption"]))
    at = clips.column_names.index("clip_id") + 1
    return clips.add_column(at, "file", paths).add_column(at + 1, "caption", captions)


def _buckets(plan: "PublishPlan", written: pa.Table) -> dict[Bucket, int]:
    """The buckets that have clips, with their number."""
    if "bucket" not in written.column_names:
        return {}
    counts: dict[Bucket, int] = {}
    for bucket in written["bucket"].to_pylist():
        key = Bucket(**bucket)
        counts[key] = counts.get(key, 0) + 1
    return counts


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def _csv(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pa.csv.write_csv(table, file)
    return file.getvalue()
