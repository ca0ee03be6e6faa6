"""Rows of a status table for shards, and remarks on outdated shards and selections."""

from typing import Any

from pipelines.grid import size
from pipelines.outdated import Outdated
from pipelines.status import Status

_SHOWN = 10
"""Tars printed per folder."""


def shard_rows(status: Status, name: str, missing: str) -> list[tuple[str, Any, str]]:
    """A folder of shards, and its tars with clips that are gone; `missing` is a remark on its contents."""
    index, outdated = status.shards[name], status.outdated_shards.get(name)
    totals = index["totals"]
    contents = f"{totals['shards']} files, {size(totals['bytes'])}{missing}{outdated_note(outdated)}"
    tars = list((outdated.gone_tars if outdated else {}).items())
    more = f"and {len(tars) - _SHOWN:,} more: see `clipmill status --json`"
    return [
        (f"shards {name}", totals["samples"], contents),
        *(("  clips that are gone", gone, tar) for tar, gone in tars[:_SHOWN]),
        *([("", None, more)] if len(tars) > _SHOWN else []),
    ]


def outdated_note(state: Outdated | None) -> str:
    """A remark on a selection or a shard folder, to append; empty if there is nothing to remark."""
    if state is None:
        return ""
    notes = [f"older than the dataset (from version {state.dataset_version})"] if state.older else []
    notes += [f"{state.gone_clips:,} clips are gone"] if state.gone_clips else []
    return "; " + ", ".join(notes)
