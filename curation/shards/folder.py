"""The folder of a selection's shards: plan.json describes the planned content, index.json marks it as complete."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clipmill import shard_folder, storage
from clipmill.errors import UserError
from clipmill.formats import SHARDS
from clipmill.resume import check_same
from clipmill.shard_folder import FailedClip, ShardRecord
from curation.shards.sample import caption_of

if TYPE_CHECKING:
    from curation.shards.write import ShardPlan


def check_plan(folder_url: str, plans: "Sequence[ShardPlan]", *, selection: str, settings: Mapping[str, Any]) -> bool:
    """Whether the folder contains these shards, or was started with them. `settings` are those that affect their
    content. Read-only.

    Raises UserError that names the differences if it contains shards of other clips, columns or settings.
    """
    plan = shard_folder.read_plan(folder_url, SHARDS)
    if plan is None:
        return False
    if plan.get("removed"):
        raise UserError(
            f"clips were removed from the shards in {folder_url} after they were written (`clipmill remove`): they are "
            "complete as they are. To write them again, give the selection a new name"
        )
    check_same(folder_url, plan, _plan(plans, selection, settings), otherwise="give the selection a new name")
    return True


def start_shards(folder_url: str, plans: "Sequence[ShardPlan]", *, selection: str, settings: Mapping[str, Any]) -> None:
    """Write plan.json, or check that the existing one is the same, and remove what a killed run left behind.

    Raises UserError as `check_plan`. No other run may write there.
    """
    if not check_plan(folder_url, plans, selection=selection, settings=settings):
        shard_folder.write_plan(folder_url, _plan(plans, selection, settings))
    storage.remove_leftovers(*storage.filesystem(folder_url))


def index_of(
    plans: "Sequence[ShardPlan]",
    records: Iterable[ShardRecord],
    *,
    selection: str,
    settings: Mapping[str, Any],
    gone: Sequence[FailedClip] = (),
    dataset_version: int = 0,
) -> dict[str, Any]:
    """Content of index.json: the plan, each shard, totals, and every selected clip that is not in the shards.

    `gone` are selected clips that are in no plan; `dataset_version` is that of the rows of the plans. selected = clips
    + failed + gone. Raises ValueError if a planned shard has no record.
    """
    by_name = {record.name: record for record in records}
    missing = [plan.name for plan in plans if plan.name not in by_name]
    if missing:
        raise ValueError(f"{len(missing)} shards have no record, among them {missing[0]}")
    ordered = [by_name[plan.name] for plan in plans]
    selected = sum(plan.clips.num_rows for plan in plans) + len(gone)
    clips = sum(record.samples if record.clips is None else record.clips for record in ordered)
    duration_s = round(sum(record.duration_s or 0.0 for record in ordered), 6)
    index = shard_folder.index_of(
        _plan(plans, selection, settings),
        ordered,
        totals={
            "duration_s": duration_s,
            "selected": selected,
            "clips": clips,
            "gone": len(gone),
            "uncaptioned": sum(_uncaptioned(plan, by_name[plan.name]) for plan in plans),
        },
        dataset_version=dataset_version,
        gone=[asdict(clip) for clip in gone],
    )
    failed = index["totals"]["failed"]
    assert selected == clips + failed + len(gone), "every planned clip is written or has failed"
    return index


def _uncaptioned(plan: "ShardPlan", record: ShardRecord) -> int:
    """Samples of a shard whose .txt is empty."""
    failed = {clip.clip_id for clip in record.failed}
    names = [name for name in ("clip_id", "caption", "captions") if name in plan.clips.column_names]
    rows = plan.clips.select(names).to_pylist()
    return sum(not caption_of(row) for row in rows if row["clip_id"] not in failed)


def _plan(plans: "Sequence[ShardPlan]", selection: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    ids = hashlib.sha256()
    for plan in plans:
        ids.update("\n".join([plan.name, *plan.clips["clip_id"].to_pylist(), ""]).encode())
    return SHARDS.describe(
        settings,
        selection=selection,
        kind=plans[0].kind if plans else None,
        clips=sum(plan.clips.num_rows for plan in plans),
        clips_sha256=ids.hexdigest(),
        columns={f.name: str(f.type) for f in plans[0].clips.schema} if plans else {},
    )
