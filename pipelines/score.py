"""`clipmill score`: add a scorer's columns to the clips of a dataset, streamed through Ray Data. `clipmill caption` is
the same with a captioner.

    clips without a score -> read what the scorer needs -> score -> one part of a table after another

Workers only compute. The driver, which owns the dataset, writes each part whole; so whatever dies, a rerun finds every
row once or not at all, and computes the missing ones.
"""

import time
from dataclasses import dataclass, field

import pyarrow as pa

from clipmill.pipeline import Stage
from curation.dataset.commits import Change, current_version
from curation.dataset.joined import view_of
from curation.dataset.missing_scores import clips_are_outdated, clips_without
from curation.dataset.score_counts import commonest_failure
from curation.dataset.score_versions import RecordedVersion, score_schema, table_of
from curation.dataset.tables import Dataset
from curation.scan.one_pass import ScanConfig
from curation.scores.base import Scorer
from curation.scores.columns import CAPTIONS
from curation.selection.saved import load_selection, selected_ids
from pipelines.changes import changing
from pipelines.cluster import connected, stopped_by_errors
from pipelines.config import CurateConfig
from pipelines.costs import recorded_costs
from pipelines.fence import Fence, refuse_if_running
from pipelines.footage import clips_at_once
from pipelines.graph import check, run
from pipelines.model_specs import AskedModels, models_of_scorer
from pipelines.models import CheckedModels, check_models
from pipelines.progress import Reporter, note
from pipelines.score_parts import PartWriter
from pipelines.score_stages import Piece, grouped, needs_of, score_stages
from pipelines.status import clip_digest
from pipelines.versions import check_all_names, digest_of, in_clips, record_version, source_digest, version_of_run

_GIVEN = ("pieces",)


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """What a run did, or would do. clips = scored_before + scored_now + failed_now, of the selection or the dataset."""

    dataset: str
    scorer: str
    version: int
    clips: int
    scored_before: int
    scored_now: int
    failed_now: int
    """Clips whose scoring failed; each has its error."""
    reason: str | None
    """The commonest of the errors of this version; None if no clip failed now."""
    dataset_clips: int
    uncovered: int
    """Clips of the dataset without a row in this version: they count as unscored."""
    changes: tuple[str, ...] = ()
    """How a new version differs from the one before."""
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A scorer and the dataset that it scores."""

    dataset: Dataset
    asked: AskedModels
    scorer: Scorer
    models: CheckedModels
    schema: pa.Schema
    scan: ScanConfig
    captions: dict[str, int]
    """Captioner -> version of its captions, if the scorer needs captions."""
    stored_embeddings: bool
    """Whether the dataset's embeddings suffice."""

    def stages(self) -> list[Stage]:
        """The graph of a run."""
        return score_stages(
            self.dataset,
            self.asked,
            self.schema,
            self.scan,
            self.models.resources,
            captions=self.captions,
            stored_embeddings=self.stored_embeddings,
        )


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a run has to do."""

    version: RecordedVersion
    changes: tuple[str, ...]
    clips: int
    groups: list[tuple[Piece, ...]] = field(default_factory=list)
    """Pieces that are scored together."""

    @property
    def pieces(self) -> list[Piece]:
        """All pieces."""
        return [piece for group in self.groups for piece in group]

    @property
    def missing(self) -> int:
        """Clips to score."""
        return sum(len(piece.rows) for piece in self.pieces)


def score(
    dataset: str,
    scorer: str,
    *,
    selection: str | None = None,
    config: CurateConfig | None = None,
    retry_failed: bool = False,
    take_over: bool = False,
    dry_run: bool = False,
    address: str | None = None,
    num_cpus: int | None = None,
    quiet: bool = False,
) -> ScoreResult:
    """Score the clips of a dataset, or of a selection, that this version of the score lacks.

    `scorer` is a name, or an address: `module:Class`, `path/file.py:Class`. Its settings are those of `config`. Other
    settings or weights than before make a new version in `scores/NAME/`. `retry_failed` scores clips again whose
    scoring failed. `dry_run` writes nothing. Raises UserError: an unknown scorer or selection, names that are taken,
    missing weights, a dataset in use; RunStopped.
    """
    config = config or CurateConfig()
    return add_scores(
        dataset,
        models_of_scorer(scorer, config),
        selection=selection,
        config=config,
        retry_failed=retry_failed,
        take_over=take_over,
        dry_run=dry_run,
        address=address,
        num_cpus=num_cpus,
        quiet=quiet,
    )


def add_scores(
    dataset: str,
    asked: AskedModels,
    *,
    selection: str | None,
    config: CurateConfig,
    retry_failed: bool,
    take_over: bool,
    dry_run: bool,
    address: str | None,
    num_cpus: int | None,
    quiet: bool,
) -> ScoreResult:
    """`score` of the one scorer in `asked`, which may be a captioner."""
    opened, made, started_s = Dataset(dataset).open(), asked.scorers[0](), time.monotonic()
    check_all_names(opened, [made])
    if selection is not None:
        load_selection(opened, selection)
    failed, command = 0, "caption" if made.folder == CAPTIONS else "score"
    with Reporter(command, unit="clips", quiet=quiet) as report:
        if not take_over:
            refuse_if_running(opened.url)
        report.connecting(address)
        with connected(address, num_cpus=num_cpus):
            report.waiting("loading the models")
            job = _job(opened, asked, made, config.scan)
            check(job.stages(), _GIVEN)
            for notice in job.models.notices:
                note(notice)
            report.waiting("reading the tables")
            plan = _plan(job, selection, retry_failed=retry_failed)
            _note_changed_source(job, plan.version)
            if not dry_run and not _is_done(job, plan):
                change = Change(command=command, what=f"{made.name}, version {plan.version.version}")
                with changing(opened, change, take_over=take_over) as fence, recorded_costs(opened, command):
                    opened.remove_unfinished()
                    # Again: another run may have committed parts since.
                    plan = _plan(job, selection, retry_failed=retry_failed)
                    failed = _run(job, plan, fence, report)
    dataset_clips, missing = clips_without(opened, made.root, plan.version.version)
    if dry_run or in_clips(opened, made, plan.version.version):
        missing = {}
    return ScoreResult(
        dataset=dataset,
        scorer=made.name,
        version=plan.version.version,
        clips=plan.clips,
        scored_before=plan.clips - plan.missing,
        scored_now=plan.missing - failed,
        failed_now=failed,
        reason=_reason(opened, made, plan.version.version) if failed else None,
        dataset_clips=dataset_clips,
        uncovered=sum(map(len, missing.values())),
        changes=plan.changes,
        wall_s=time.monotonic() - started_s,
    )


def _job(dataset: Dataset, asked: AskedModels, scorer: Scorer, scan: ScanConfig) -> _Job:
    """Load the models on every node, and read what of the dataset decides how the scorer runs."""
    models = check_models(asked)
    return _Job(
        dataset=dataset,
        asked=asked,
        scorer=scorer,
        models=models,
        schema=score_schema(scorer.name, scorer.columns, sees_captions="captions" in scorer.needs),
        scan=scan.replace(thumbnail_long_side_px=_thumbnail_size(dataset)),
        captions=_captions_for(dataset, scorer),
        stored_embeddings=_embeddings_serve(dataset, scorer, models),
    )


def _plan(job: _Job, selection: str | None, *, retry_failed: bool) -> _Plan:
    sees_captions = "captions" in job.scorer.needs
    outdated = sees_captions and in_clips(job.dataset, job.scorer, 1) and clips_are_outdated(job.dataset)
    spec = job.asked.scorers[0]
    version, changes = version_of_run(job.dataset, spec, job.scorer, job.models, job.captions, without_clips=outdated)
    selected = selected_ids(job.dataset, selection) if selection is not None else None
    clips, missing = clips_without(
        job.dataset,
        job.scorer.root,
        version.version,
        selected,
        or_failed=retry_failed,
        sees_captions=sees_captions,
    )
    if in_clips(job.dataset, job.scorer, version.version):
        missing = {}
    clips_per_piece = clips_at_once(
        needs_of(job.asked, stored_embeddings=job.stored_embeddings), job.scorer.clips_at_least
    )
    pieces = [
        Piece(part=part, rows=rows[start : start + clips_per_piece])
        for part, rows in missing.items()
        for start in range(0, len(rows), clips_per_piece)
    ]
    groups = grouped(pieces, at_least=job.scorer.clips_at_least, at_most=clips_per_piece)
    return _Plan(version=version, changes=changes, clips=clips, groups=groups)


def _reason(dataset: Dataset, scorer: Scorer, version: int) -> str | None:
    with dataset.connect() as connection:
        return commonest_failure(connection, scorer.name, view_of(scorer.root, version))


def _is_done(job: _Job, plan: _Plan) -> bool:
    """Whether a run would write nothing, neither rows nor a record."""
    if plan.pieces or current_version(job.dataset).changing:
        return False
    version = plan.version.version
    recorded = job.dataset.recorded_versions(job.scorer.root)
    finished = any(each.version == version and each.finished for each in recorded)
    return finished or in_clips(job.dataset, job.scorer, version)


def _embeddings_serve(dataset: Dataset, scorer: Scorer, models: CheckedModels) -> bool:
    """Whether the dataset's embeddings suffice for a scorer: it needs no others, and they are of the same model."""
    of_dataset = clip_digest(dataset)
    needs_no_others = "mean_embedding" in scorer.needs and "embeddings" not in scorer.needs
    return needs_no_others and of_dataset is not None and of_dataset == models.digests.get("clip")


def _captions_for(dataset: Dataset, scorer: Scorer) -> dict[str, int]:
    """Captioner -> version of the captions that a scorer or another captioner sees."""
    if "captions" not in scorer.needs:
        return {}
    others = dataset.counted_captions().items()
    return {name: version for name, version in others if f"{CAPTIONS}/{name}" != scorer.root}


def _note_changed_source(job: _Job, version: RecordedVersion) -> None:
    source = source_digest(job.asked.scorers[0])
    if version.source_sha256 not in (None, source):
        note(
            f"{job.scorer.name}: its code has changed since version {version.version} was made. If that changes its "
            "values, raise `version` in its class, or the version mixes both."
        )


def _thumbnail_size(dataset: Dataset) -> int:
    """Of the dataset, in px on the longer side."""
    scan = dataset.description()["config"].get("scan") or {}
    return int(scan.get("thumbnail_long_side_px") or ScanConfig().thumbnail_long_side_px)


def _run(job: _Job, plan: _Plan, fence: Fence, report: Reporter) -> int:
    """Score the pieces; returns the number of clips whose scoring failed."""
    root, version, failed = job.scorer.root, plan.version, 0
    if in_clips(job.dataset, job.scorer, version.version):
        return 0
    record_version(job.dataset, root, version)
    if plan.groups:
        report.begin(plan.missing)
        digest, table = digest_of(job.scorer, job.models), table_of(root, version.version)
        writing = PartWriter(job.dataset, table, fence, plan.pieces, summed=job.scorer.kept_on_error)
        with stopped_by_errors(), writing as writer:
            for scored in run(job.stages(), plan.groups, _GIVEN):
                writer.add(scored, version=version.version, weights_digest=digest)
                report.advance(scored.table.num_rows)
            failed = writer.finish()
    record_version(job.dataset, root, version, finished=True)
    return failed
