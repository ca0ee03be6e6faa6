"""Raw videos in, scored clips in a table: the curation half of the paper (section 3.1), streamed through Ray Data.

    inputs -> scan (cuts, motion, thumbnails) -> model scorers -> one committed part after another

What passes between the stages is rows and three thumbnails per clip, never a video.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from clipmill import storage
from clipmill.addresses import redacted
from clipmill.errors import UserError
from clipmill.pipeline import Stage
from clipmill.resume import check_same, shortened
from curation.dataset.commits import Change, current_version
from curation.dataset.removed import forget_removed, removed_sources
from curation.dataset.score_versions import score_schema, table_of
from curation.dataset.superseded import remove_superseded, superseded_sources
from curation.dataset.tables import Dataset
from curation.dedup.cluster_sizes import refresh_cluster_sizes
from curation.dedup.duplicates import DuplicatesResult, has_embeddings, is_current
from curation.inputs.sources import InputsConfig, Source, list_sources
from curation.scores.columns import CAPTIONS, SCORE_COLUMNS
from pipelines.changes import changing
from pipelines.cluster import connected
from pipelines.config import CurateConfig
from pipelines.costs import recorded_costs
from pipelines.counting import counted_on
from pipelines.duplicates import search_duplicates
from pipelines.fence import Fence, refuse_if_running
from pipelines.graph import check, run
from pipelines.model_specs import asked_models
from pipelines.models import CheckedModels, check_models
from pipelines.parts import ScoreTable, scan_stage, write_stage
from pipelines.progress import Reporter, note
from pipelines.scoring import SOURCES_PER_BATCH, clip_stages
from pipelines.status import Status, models_of, status
from pipelines.versions import check_all_names, digest_of, record_version, version_of_run

_MODELS_FILE = "models.json"
_GIVEN = ("source",)
_PART_SOURCE_BYTES = 2 << 30
_PARTS_AT_LEAST = 64
_SOURCES_PER_PART = 256


@dataclass(frozen=True, kw_only=True)
class CurateResult:
    """Results of one run, and the state of the dataset after it."""

    dataset: str
    sources_given: int
    sources_done_before: int
    sources_done_now: int
    sources_removed: int
    """Inputs that `clipmill remove` took out of the dataset: they are not scanned again."""
    wall_s: float
    duplicates: DuplicatesResult | None
    """None without embeddings or if the search is disabled."""
    status: Status


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a run has to do."""

    todo: list[Source]
    rejected: set[str] = field(default_factory=set)
    """Source ids that were rejected before and are retried."""
    superseded: set[str] = field(default_factory=set)
    """Sources whose file was replaced: the inputs have another one at the same address."""
    removed: int = 0
    """Inputs to skip, because they were removed from the dataset."""
    restored: list[Source] = field(default_factory=list)
    """Inputs that were removed, and are scanned again."""


def curate(
    inputs: Sequence[str],
    out: str,
    *,
    config: CurateConfig | None = None,
    limit: int | None = None,
    retry_rejected: bool = False,
    restore: bool = False,
    take_over: bool = False,
    address: str | None = None,
    num_cpus: int | None = None,
    quiet: bool = False,
) -> CurateResult:
    """Curate videos into the dataset folder `out`; rerunning does only what is missing.

    `inputs` as in `curation.inputs.list_sources`, at most `limit` of them; `address` of a Ray cluster, or `num_cpus` of
    a local one. `retry_rejected` retries sources that an earlier run rejected (a limit that was too low); unreadable
    ones are always retried. Of a file that was replaced since, the older rows go. `restore` scans sources that
    `clipmill remove` took out. `take_over` stops a live run that owns `out`. The near-duplicate search runs last.
    Raises UserError: no usable input, a different configuration, `out` not writable or in use; RunStopped: disk full,
    another run took over.
    """
    config, started_s = config or CurateConfig(), time.monotonic()
    dataset = Dataset(out)
    with Reporter("curate", unit="sources", quiet=quiet) as report:
        report.waiting("listing the inputs")
        sources = _listed(inputs, config.inputs, limit, quiet=quiet)
        planned = partial(_plan, sources, dataset, retry_rejected=retry_rejected, restore=restore)
        if dataset.exists():
            dataset.create_or_open(config.described())
        plan, done_now, change = planned(), 0, Change(command="curate", what=_named(inputs))
        if plan.removed:
            note(
                f"{plan.removed:,} of the inputs were removed from the dataset by `clipmill remove` and are skipped; "
                "pass --restore to scan them again"
            )
        if plan.todo or plan.superseded:
            if not take_over:
                refuse_if_running(dataset.url)
            report.connecting(address)
            with connected(address, num_cpus=num_cpus):
                done_now, duplicates = _do(planned, dataset, config, report, change, address, take_over=take_over)
        else:
            report.waiting("searching for near-duplicates")
            duplicates = _duplicates(dataset, config, change, address, take_over=take_over)
        report.waiting("reading the tables")
        summary = status(dataset)
        _check_usable(sources, dataset, summary, removed=plan.removed)
    return CurateResult(
        dataset=out,
        sources_given=len(sources),
        sources_done_before=len(sources) - done_now - plan.removed,
        sources_done_now=done_now,
        sources_removed=plan.removed,
        wall_s=time.monotonic() - started_s,
        duplicates=duplicates,
        status=summary,
    )


def _listed(inputs: Sequence[str], config: InputsConfig, limit: int | None, *, quiet: bool) -> list[Source]:
    """The inputs, at most `limit`. Raises UserError if there are none."""
    listing = list_sources(inputs, config)
    sources = list(islice(listing, limit))
    passed_over = f"skipped: {listing.passed_over_sentence()}" if listing.passed_over else ""
    if not sources:
        given = ", ".join(map(redacted, inputs)) or "nothing"
        raise UserError(f"no usable input: no videos found in {given}" + (passed_over and f" ({passed_over})"))
    for remark in () if quiet else filter(None, (passed_over, *listing.notes)):
        note(remark)
    return sources


def _named(inputs: Sequence[str]) -> str:
    """The inputs for the record of versions, without credentials."""
    return shortened([redacted(given) for given in inputs])


def _do(
    planned: Callable[[], _Plan],
    dataset: Dataset,
    config: CurateConfig,
    report: Reporter,
    change: Change,
    address: str | None,
    *,
    take_over: bool,
) -> tuple[int, DuplicatesResult | None]:
    """Do what is missing on Ray; returns the number of sources done, and the near-duplicates. Creates the dataset if
    needed."""
    report.waiting("loading the models")
    # Before the dataset is created, so that an invalid request leaves nothing behind.
    asked = asked_models(config)
    check_all_names(dataset, [spec() for spec in (*asked.captioners, *asked.scorers)])
    checked = check_models(asked)
    check(_stages(config, checked, dataset, Fence(url=dataset.url, run="")), _GIVEN)
    dataset.create_or_open(config.described())
    _check_models_are_the_same(dataset, checked)
    with changing(dataset, change, take_over=take_over) as fence, recorded_costs(dataset, "curate"):
        plan = planned()  # again, now that this run owns the folder: another run may have committed parts since
        scores = _prepare(dataset, plan, checked, config, fence)
        done = _run(plan.todo, dataset, config, fence, checked, report, scores)
        dataset.remove_unfinished()
        report.waiting("searching for near-duplicates")
        duplicates = _search_duplicates(dataset, config, address)
    return done, duplicates


def _check_usable(sources: Sequence[Source], dataset: Dataset, summary: Status, *, removed: int) -> None:
    """Raise UserError if every source was rejected, or removed before."""
    if removed == len(sources):
        raise UserError(
            f"no usable input: all {removed:,} sources were removed from {dataset.url} by `clipmill remove`. Pass "
            "--restore to scan them again"
        )
    status_of = dataset.statuses()
    ids = {source.source_id for source in sources}
    if not any(status_of.get(i) == "ok" for i in ids):
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.rejected.items())
        raise UserError(f"no usable input: all {len(ids)} sources were rejected ({kinds}); see {dataset.url}")


def _plan(sources: Sequence[Source], dataset: Dataset, *, retry_rejected: bool, restore: bool) -> _Plan:
    """What is missing, given what is committed. Read-only: another run may own the dataset."""
    if not dataset.exists():
        return _Plan(todo=list(sources))
    removed = removed_sources(dataset)
    out = [source for source in sources if removed.covers(source.source_id, source.uri)]
    if not restore:
        skipped = {source.source_id for source in out}
        sources = [source for source in sources if source.source_id not in skipped]
    before = dataset.statuses()
    ids = {source.source_id for source in sources}
    # A store or a server that failed while a video was read may work now; what failed in the listing has failed again.
    listed = {source.source_id for source in sources if source.error is None}
    rejected = {i for i in listed if before.get(i) == "unreadable"}
    rejected |= {i for i in ids if retry_rejected and before.get(i, "ok") != "ok"}
    return _Plan(
        todo=[source for source in sources if source.source_id not in before or source.source_id in rejected],
        rejected=rejected,
        superseded=superseded_sources(dataset, {s.uri: s.source_id for s in sources if s.error is None}),
        removed=0 if restore else len(out),
        restored=out if restore else [],
    )


def _prepare(
    dataset: Dataset, plan: _Plan, checked: CheckedModels, config: CurateConfig, fence: Fence
) -> list[ScoreTable]:
    """Prepare the dataset for this run, which owns it; returns the tables of captioners and further scores."""
    tables, captions = _score_tables(dataset, config, checked)
    _keep_models(dataset, checked, config, captions)
    refresh = partial(refresh_cluster_sizes, dataset, fence.check)
    remove_superseded(dataset, plan.superseded, fence.check, refresh=refresh)
    if plan.restored:
        uris, ids = ([getattr(s, name) for s in plan.restored] for name in ("uri", "source_id"))
        forget_removed(dataset, uris, ids)
    dataset.remove_unfinished()
    if plan.rejected:
        dataset.forget_rejected(plan.rejected)
    for notice in checked.notices:
        note(notice)
    return tables


def _run(
    todo: Sequence[Source],
    dataset: Dataset,
    config: CurateConfig,
    fence: Fence,
    checked: CheckedModels,
    report: Reporter,
    scores: Sequence[ScoreTable],
) -> int:
    """Process the sources; returns their number."""
    if not todo:
        return 0
    clips = committed = 0
    with counted_on(report, len(todo)) as counter:
        stages = _stages(config, checked, dataset, fence, counter, part_size=_part_size(todo), scores=scores)
        for part in run(stages, list(enumerate(todo)), _GIVEN):
            committed, clips = committed + part.sources, clips + part.clips
            report.detail(f"{committed:,} committed, {clips:,} clips")
    return len(todo)


def _stages(
    config: CurateConfig,
    checked: CheckedModels,
    dataset: Dataset,
    fence: Fence,
    counter: Any = None,
    part_size: int = 1,
    scores: Sequence[ScoreTable] = (),
) -> list[Stage]:
    return [
        scan_stage(config, counter),
        *clip_stages(config, checked.resources),
        write_stage(dataset, fence, sources=part_size, scores=scores),
    ]


def _score_tables(
    dataset: Dataset, config: CurateConfig, checked: CheckedModels
) -> tuple[list[ScoreTable], dict[str, int]]:
    """Record the versions of captioners and plug-ins' scores that this run, which owns the dataset, writes; returns
    their tables, and captioner -> version."""
    tables: list[ScoreTable] = []
    captions: dict[str, int] = {}
    asked = asked_models(config)
    for spec in (*asked.captioners, *asked.scorers):
        scorer = spec()
        if scorer.name in SCORE_COLUMNS:
            continue
        version, _ = version_of_run(dataset, spec, scorer, checked, captions)
        record_version(dataset, scorer.root, version, finished=True)
        if scorer.folder == CAPTIONS:
            captions = captions | {scorer.name: version.version}
        tables.append(
            ScoreTable(
                table=table_of(scorer.root, version.version),
                schema=score_schema(scorer.name, scorer.columns, sees_captions="captions" in scorer.needs),
                version=version.version,
                weights_digest=digest_of(scorer, checked),
            )
        )
    return tables, captions


def _part_size(todo: Sequence[Source]) -> int:
    """Sources per part: few files for many small sources, and little to redo after a kill."""
    mean_bytes = max(1, sum(source.size_bytes or 0 for source in todo) // len(todo))
    sources = max(1, min(_SOURCES_PER_PART, len(todo) // _PARTS_AT_LEAST, _PART_SOURCE_BYTES // mean_bytes))
    # Whole batches of the clip stages: a remainder would become a small part.
    return sources if sources < SOURCES_PER_BATCH else sources - sources % SOURCES_PER_BATCH


def _duplicates(
    dataset: Dataset, config: CurateConfig, change: Change, address: str | None, *, take_over: bool
) -> DuplicatesResult | None:
    """The near-duplicates of a run without other work: search for them if they are outdated, and record what a killed
    run changed."""
    wanted = config.duplicates is not None and has_embeddings(dataset, config.duplicates)
    due = wanted and not is_current(dataset, config.duplicates)
    if due or current_version(dataset).changing:
        with changing(dataset, change, take_over=take_over):
            return _search_duplicates(dataset, config, address)
    return _search_duplicates(dataset, config, address)


def _search_duplicates(dataset: Dataset, config: CurateConfig, address: str | None) -> DuplicatesResult | None:
    """Search for near-duplicates unless the table is current, and record the settings used."""
    if config.duplicates is None or not has_embeddings(dataset, config.duplicates):
        return None
    result = search_duplicates(dataset, config.duplicates, address=address)
    settings = config.duplicates.model_dump(mode="json")
    models = models_of(dataset)
    if models.get("duplicates") != settings:
        _write_models(dataset, models | {"duplicates": settings})
    return result


def _check_models_are_the_same(dataset: Dataset, checked: CheckedModels) -> None:
    """Raise UserError if the existing clips were scored with other weights."""
    before = models_of(dataset).get("digests", checked.digests)
    check_same(dataset.url, {"weights": before}, {"weights": checked.digests})


def _keep_models(dataset: Dataset, checked: CheckedModels, config: CurateConfig, captions: dict[str, int]) -> None:
    """Record which weights, and versions of which captions, score this dataset."""
    if not models_of(dataset):
        duplicates = config.duplicates and config.duplicates.model_dump(mode="json")
        _write_models(dataset, checked.recorded() | {"duplicates": duplicates, "captions": captions})


def _write_models(dataset: Dataset, content: dict[str, Any]) -> None:
    storage.write_json(dataset.fs, dataset.file(_MODELS_FILE), content)
