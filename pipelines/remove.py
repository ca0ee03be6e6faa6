"""`clipmill remove`: remove sources from a dataset, with everything that was made from them.

    note the removal -> selections and marks -> shards -> tables -> near-duplicates again -> record it -> drop the note

From the note on, nothing else opens the dataset. Every step can be repeated: after a kill, a rerun does them all again.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from clipmill import storage
from clipmill.errors import UserError
from clipmill.shard_folder import latent_folders, published_folders
from curation.dataset.commits import Change, latest_commit, unrecorded_change
from curation.dataset.removal import Removal, ShardAction, end_removal, note_removal, noted_removal
from curation.dataset.removed import record_removed, removed_sources
from curation.dataset.source_rows import count_rows, remove_rows, rows_in_file
from curation.dataset.tables import Dataset
from curation.dedup.cluster_sizes import refresh_cluster_sizes
from curation.dedup.duplicates import forget_search, refresh_duplicates
from curation.publish.layouts import DATA
from curation.selection.removal import count_selected, remove_from_selections
from curation.shards.places import CATALOG
from curation.shards.removal import check_rewritable, is_being_rewritten, remove_from_shards, shards_with
from pipelines.changes import changing
from pipelines.fence import Fence, owned, refuse_if_running
from pipelines.progress import Reporter
from pipelines.removal_request import AskedSources, asked_sources


@dataclass(frozen=True, kw_only=True)
class RemoveResult:
    """What was removed, or would be."""

    dataset: str
    version: int | None
    """Version of the dataset without the sources; None if nothing was written."""
    sources: int
    clips: int
    not_in_dataset: tuple[str, ...] = ()
    """Given addresses that are not in the dataset: recorded as well, so that `curate` never scans them."""
    rows: dict[str, int] = field(default_factory=dict)
    """Table -> rows."""
    selections: dict[str, int] = field(default_factory=dict)
    """Selection -> its clips."""
    shards: dict[str, int] = field(default_factory=dict)
    """Address of a tar -> its samples of these sources: rewritten, or left as they are with `shards="list"`."""
    latents: tuple[str, ...] = ()
    """Tars of latents that hold them; never rewritten."""
    published: tuple[str, ...] = ()
    """Folders of `clipmill publish` that hold clips of them; never rewritten."""
    pages: tuple[str, ...] = ()
    """Pages of the report, which show pictures: deleted."""


def remove(
    dataset: str,
    *,
    sources: str | Sequence[str] = (),
    where: str | None = None,
    reason: str = "",
    shards: ShardAction = "rewrite",
    dry_run: bool = False,
    take_over: bool = False,
    quiet: bool = False,
) -> RemoveResult:
    """Remove sources, with their clips, pictures, scores, captions and embeddings, from tables, selections and shards.

    `sources` names lists, addresses or source ids; or `where` is an SQL condition on the sources table. `shards`:
    rewrite the tars that hold their clips, or only list them. Without `sources` and `where`, finish the removal of a
    run that died; with them, that comes first. `curate` never scans removed sources again, unless told to.

    Raises UserError if none of the sources is in the dataset, if the dataset is in use, or without a reason;
    RunStopped.
    """
    opened = Dataset(dataset, while_removing=True).open()
    given = (sources,) if isinstance(sources, str) else tuple(sources)
    _check_request(given, where, reason)
    with Reporter("remove", unit="steps", quiet=quiet) as report:
        if not take_over and not dry_run:
            refuse_if_running(opened.url)
        unfinished = noted_removal(opened)
        result = None
        if unfinished is not None and not dry_run:
            result = _remove(opened, unfinished, report, take_over=take_over, resumed=True)
        if not given and where is None:
            if result is None:
                raise UserError(f"no removal of {dataset} was interrupted: pass --sources or --where")
            return result
        report.waiting("reading the tables")
        asked = _asked(opened, given, where)
        if not asked.sources and not asked.addresses:  # all were removed before
            return result or _recorded(opened, dry_run=dry_run, take_over=take_over)
        if shards == "rewrite":
            for folder in _shard_folders(opened):
                if shards_with(folder, asked.sources):
                    check_rewritable(folder)
        removal = Removal(
            sources=asked.sources,
            addresses=asked.addresses,
            reason=reason,
            shards=shards,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            counts=_counts(opened, asked.sources),
        )
        return _result(opened, removal, None) if dry_run else _remove(opened, removal, report, take_over=take_over)


def _check_request(given: Sequence[str], where: str | None, reason: str) -> None:
    if given and where is not None:
        raise UserError("--sources and --where are mutually exclusive; pass one of them")
    if (given or where is not None) and not reason.strip():
        raise UserError("a removal needs a --reason, which is recorded with it, such as 'takedown request of 3 May'")


def _asked(dataset: Dataset, given: Sequence[str], where: str | None) -> AskedSources:
    """What is left to remove. Raises UserError if nothing of it is in the dataset, nor was removed before."""
    asked, before = asked_sources(dataset, given, where), removed_sources(dataset)
    new = tuple(uri for uri in asked.addresses if not before.covers(uri.rpartition("/")[2], uri))
    if not asked.sources and len(new) == len(asked.addresses):
        what = f"none of the {len(new):,} sources given is" if given else "no source for which the condition holds is"
        raise UserError(f"{what} in {dataset.url}: see its sources with `clipmill status`, and their uri in sources/")
    return AskedSources(sources=asked.sources, addresses=new)


def _remove(
    dataset: Dataset, removal: Removal, report: Reporter, *, take_over: bool, resumed: bool = False
) -> RemoveResult:
    """All steps, whichever of them a killed run has done."""
    ids = set(removal.sources)
    change = Change(command="remove", what=f"{len(ids):,} sources", reason=removal.reason)
    with changing(dataset, change, take_over=take_over) as fence:
        latest = latest_commit(dataset)
        version = latest.version + 1 if latest else 1
        if resumed and noted_removal(dataset) is None:  # the run that began it has ended it meanwhile
            return _result(dataset, removal, version - 1)
        note_removal(dataset, removal)
        report.waiting("removing clips from selections")
        remove_from_selections(dataset, ids, fence.check)
        for page in (*_pages(dataset), *_copies(dataset)):
            storage.remove(dataset.fs, page)
        if removal.shards == "rewrite":
            for folder in _shard_folders(dataset):
                report.waiting(f"rewriting shards in {folder}")
                _remove_from_shards(folder, ids, version, fence, take_over=take_over)
        report.waiting("removing rows from the tables")
        forget_search(dataset, ids)
        remove_rows(dataset, ids, fence.check)
        refresh_cluster_sizes(dataset, fence.check)
        report.waiting("searching for near-duplicates")
        refresh_duplicates(dataset)
        fence.check()
        record_removed(dataset, removal.as_table(version), version)
        end_removal(dataset)
    return _result(dataset, removal, version)


def _remove_from_shards(folder: str, ids: set[str], version: int, fence: Fence, *, take_over: bool) -> None:
    if not shards_with(folder, ids) and not is_being_rewritten(folder):
        return
    with owned(folder, take_over=take_over) as of_folder:

        def check() -> None:
            fence.check()
            of_folder.check()

        remove_from_shards(folder, ids, version, check)


def _counts(dataset: Dataset, sources: dict[str, str]) -> dict[str, Any]:
    ids = set(sources)
    shards: dict[str, int] = {}
    latents: list[str] = []
    for folder in _shard_folders(dataset):
        held = shards_with(folder, ids)
        shards |= {f"{folder}/{shard.name}": shard.samples for shard in held}
        latents += list(_latents(folder, [shard.name for shard in held]))
    return {
        "rows": count_rows(dataset, ids),
        "selections": count_selected(dataset, ids),
        "shards": shards,
        "latents": latents,
        "published": list(_published(dataset, ids)),
        "pages": [storage.address(dataset.fs, page) for page in _pages(dataset)],
    }


def _latents(folder: str, names: Sequence[str]) -> Iterator[str]:
    for latents in latent_folders(folder):
        fs, path = storage.filesystem(latents)
        yield from (f"{latents}/{name}" for name in names if storage.exists(fs, f"{path}/{name}"))


def _published(dataset: Dataset, source_ids: Collection[str]) -> Iterator[str]:
    """Published folders whose table lists clips of these sources, and unfinished ones, which have no table yet. Folders
    that are gone are skipped."""
    ids = pa.array(source_ids, pa.string())
    for folder in published_folders(dataset.url):
        fs, path = storage.filesystem(folder)
        tables = [table for table in (f"{path}/{CATALOG}", f"{path}/{DATA}/{CATALOG}") if storage.exists(fs, table)]
        unfinished = not tables and storage.exists(fs, path)
        if unfinished or any(rows_in_file(fs, table, ids) for table in tables):
            yield folder


def _shard_folders(dataset: Dataset) -> list[str]:
    return [storage.address(dataset.fs, path) for path in storage.list_folders(dataset.fs, dataset.file("shards"))]


def _pages(dataset: Dataset) -> list[str]:
    """Pages and contact sheets, in every format."""
    return storage.list_files(dataset.fs, dataset.file("report"))


def _copies(dataset: Dataset) -> list[str]:
    """Files made from the tables for search, which the next search makes anew."""
    return storage.list_files(dataset.fs, dataset.file("search"))


def _result(dataset: Dataset, removal: Removal, version: int | None) -> RemoveResult:
    counts = removal.counts
    return RemoveResult(
        dataset=dataset.url,
        version=version,
        sources=len(removal.sources),
        clips=counts["rows"].get("clips", 0),
        not_in_dataset=removal.addresses,
        rows=counts["rows"],
        selections=counts["selections"],
        shards=counts["shards"],
        latents=tuple(counts["latents"]),
        published=tuple(counts["published"]),
        pages=tuple(counts["pages"]),
    )


def _recorded(dataset: Dataset, *, dry_run: bool, take_over: bool) -> RemoveResult:
    """Nothing is left to remove; but the run that removed it may have died before its commit."""
    change = unrecorded_change(dataset)
    if change is not None and not dry_run:
        with changing(dataset, change, take_over=take_over):
            pass
    return RemoveResult(dataset=dataset.url, version=None, sources=0, clips=0)
