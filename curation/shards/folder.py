"""The folder of a selection's shards: plan.json describes the planned content, index.json marks it as complete."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from clipmill import storage
from clipmill.errors import UserError
from clipmill.resume import check_same, started_with
from curation.shards.write import FailedClip, ShardPlan, ShardResult

FORMAT_VERSION = 2
"""Raised when a reader of the older format would misread a sample."""

_PLAN, _INDEX = "plan.json", "index.json"


def check_plan(folder_url: str, plans: Sequence[ShardPlan], *, selection: str, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds these shards, or some of them, already; `settings` are those that decide what they hold.
    Only reads.

    Raises UserError, with the difference, when it holds shards of other clips, columns or settings.
    """
    wanted = _plan(plans, selection, settings)
    old_plan = _read(folder_url, _PLAN)
    if old_plan is not None and old_plan.get("format_version") != FORMAT_VERSION:
        version = old_plan.get("format_version")
        raise UserError(
            f"{folder_url} has shard format {version}, this clipmill writes format {FORMAT_VERSION}: remove the "
            "folder, or rename the selection."
        )
    if old_plan is not None:
        check_same(folder_url, "shards", old_plan, wanted, otherwise="give the selection a new name")
    return old_plan is not None


def start_shards(folder_url: str, plans: Sequence[ShardPlan], *, selection: str, settings: Mapping[str, Any]) -> None:
    """Note in plan.json what is going to be written there, or check that it is what was begun there before.

    Raises UserError as `check_plan`. Removes what a killed run left behind; no other run may write there.
    """
    fs, folder = storage.filesystem(folder_url)
    if not check_plan(folder_url, plans, selection=selection, settings=settings):
        storage.write_json(fs, f"{folder}/{_PLAN}", _plan(plans, selection, settings))
    storage.remove_leftovers(fs, folder)


def index_of(
    plans: Sequence[ShardPlan],
    results: Iterable[ShardResult],
    *,
    selection: str,
    settings: Mapping[str, Any],
    gone: Sequence[FailedClip] = (),
) -> dict[str, Any]:
    """What index.json says: what the shards were made of, each shard, totals, and every clip that is not in them.

    `gone` are selected clips that are in no plan. selected = samples + failed + gone. Raises ValueError when a planned
    shard has no result.
    """
    by_name = {result.name: result for result in results}
    missing = [plan.name for plan in plans if plan.name not in by_name]
    if missing:
        raise ValueError(f"{len(missing)} shards have no result, among them {missing[0]}")
    ordered = [by_name[plan.name] for plan in plans]
    failed = [asdict(clip) | {"shard": result.name} for result in ordered for clip in result.failed]
    totals: dict[str, Any] = {
        key: round(sum(getattr(result, key) for result in ordered), 6) for key in ("samples", "duration_s", "bytes")
    }
    selected = sum(plan.clips.num_rows for plan in plans) + len(gone)
    assert selected == totals["samples"] + len(failed) + len(gone), "every clip of a plan is written or has failed"
    return _plan(plans, selection, settings) | {
        "shards": [
            {key: getattr(result, key) for key in ("name", "samples", "duration_s", "bytes", "sha256")}
            for result in ordered
        ],
        "totals": totals | {"shards": len(ordered), "selected": selected, "failed": len(failed), "gone": len(gone)},
        "failed": failed,
        "gone": [asdict(clip) for clip in gone],
    }


def write_index(folder_url: str, index: dict[str, Any]) -> None:
    """Write index.json, which says that all shards are there: `index` as `index_of` gives it."""
    fs, folder = storage.filesystem(folder_url)
    storage.write_json(fs, f"{folder}/{_INDEX}", index)


def read_index(folder_url: str) -> dict[str, Any] | None:
    """What index.json says; None where it is not there. Raises UserError where it is damaged."""
    return _read(folder_url, _INDEX)


def remove_index(folder_url: str) -> None:
    """Remove index.json while shards are being written: it marks a complete folder."""
    fs, folder = storage.filesystem(folder_url)
    storage.remove(fs, f"{folder}/{_INDEX}")


def _read(folder_url: str, name: str) -> dict[str, Any] | None:
    fs, folder = storage.filesystem(folder_url)
    return storage.read_json_if_exists(fs, f"{folder}/{name}", dict)


def _plan(plans: Sequence[ShardPlan], selection: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    ids = hashlib.sha256()
    for plan in plans:
        ids.update("\n".join([plan.name, *plan.clips["clip_id"].to_pylist(), ""]).encode())
    return started_with(
        "shards",
        FORMAT_VERSION,
        settings,
        selection=selection,
        kind=plans[0].kind if plans else None,
        clips=sum(plan.clips.num_rows for plan in plans),
        clips_sha256=ids.hexdigest(),
        columns={f.name: str(f.type) for f in plans[0].clips.schema} if plans else {},
    )
