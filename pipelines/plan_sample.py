"""What the sampled inputs of `clipmill plan` take: each through the scan, the models, the tables and a shard.

All of it is written, into a temporary folder, so that sizes are those of real files.
"""

import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import pyarrow.compute as pc

from clipmill.costs import Cost, Costs, measured, peak_child_bytes, take
from clipmill.errors import SourceError
from clipmill.pipeline import loaded
from clipmill.shard_folder import ShardRecord
from curation.captioners.endpoint import EndpointCaptioner
from curation.dataset.schemas import SCAN_PARTS
from curation.dataset.score_versions import RecordedVersion, ScoreVersion, score_schema, table_of
from curation.dataset.tables import Dataset
from curation.inputs.sources import Source
from curation.scan.isolation import Isolated
from curation.scan.one_pass import Scan
from curation.scores.columns import SCORE_COLUMNS
from curation.selection.rules import Rules
from curation.selection.select import select_clips
from curation.shards.extract import extract_clips
from curation.shards.write import ShardConfig, plan_shards, write_shard
from pipelines.config import CurateConfig
from pipelines.fence import Fence, owned
from pipelines.model_specs import AskedModels, asked_models
from pipelines.parts import ScoreTable, scan_safely, write_part
from pipelines.progress import Reporter
from pipelines.scoring import clip_stages
from pipelines.selected import selected_rows

_SELECTION = "all"
_KIB = 1024


@dataclass(frozen=True, kw_only=True)
class SampledInput:
    """Costs and results of one input."""

    size_bytes: float
    error_kind: str | None
    video_s: float
    clips: int
    clip_s: float
    embedding_width: int | None
    """Of its clips' embeddings; None without."""
    stage_cpu_s: dict[str, float]
    total: Cost
    requests_s: float
    """Time that its captions keep the one worker that asks endpoints."""
    rows_bytes: int
    """Of its parts of the tables."""
    shard_bytes: int = 0
    """Of its samples, if every clip is kept."""

    def with_shards(self, shard_bytes: int, costs: Costs) -> "SampledInput":
        """With what its shards take."""
        total = replace(self.total)
        for cost in costs.values():
            total.add(cost)
        stage_cpu_s = self.stage_cpu_s | {stage: cost.cpu_s for stage, cost in costs.items()}
        return replace(self, shard_bytes=shard_bytes, stage_cpu_s=stage_cpu_s, total=total)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The sampled inputs, and the peak of memory of a worker and its child."""

    inputs: Sequence[SampledInput] = field(repr=False)
    memory_bytes: int


def measure_sample(chosen: Sequence[Source], config: CurateConfig, device: str, report: Reporter) -> Sample:
    """Run the inputs, one after the other."""
    with tempfile.TemporaryDirectory(prefix="clipmill-plan-") as folder:
        dataset = Dataset(f"{folder}/dataset").create_or_open(config.described())
        with owned(dataset.url) as fence:
            sampled, peak_bytes = _curated(chosen, dataset, config, device, fence, report)
        own_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
        if any(each.clips for each in sampled.values()):
            report.waiting("extracting the clips of the sample")
            sharded, shard_peak_bytes = _sharded(dataset, f"{folder}/shards")
            sampled |= {source_id: sampled[source_id].with_shards(*shards) for source_id, shards in sharded.items()}
            peak_bytes = max(peak_bytes, shard_peak_bytes)
    return Sample(inputs=list(sampled.values()), memory_bytes=own_bytes + peak_bytes)


def _curated(
    chosen: Sequence[Source], dataset: Dataset, config: CurateConfig, device: str, fence: Fence, report: Reporter
) -> tuple[dict[str, SampledInput], int]:
    """Source id -> its costs so far, and the peak of memory of the child that scans."""
    score = loaded(clip_stages(config), device, gpus=float(device == "cuda"))
    asked = asked_models(config)
    tables, in_flight = _score_tables(dataset, asked), _requests_in_flight(asked)
    sampled: dict[str, SampledInput] = {}
    peak_bytes = 0
    with Isolated(config.scan.limits) as child:
        # The first call makes the child import its modules; a run does that once for thousands of inputs.
        unreadable = Source(uri="", error=SourceError("unreadable", "only to start the child"))
        scan_safely(child, unreadable, config)
        take()
        for source in chosen:
            with measured("scan"):
                scanned = scan_safely(child, source, config)
            (scanned,) = score([scanned])
            width = _embedding_width(scanned)
            with measured("write"):
                write_part([scanned], dataset, fence, tables)
            rows_bytes = _folder_bytes(dataset) - sum(each.rows_bytes for each in sampled.values())
            seen = _sampled(source, scanned, take(), in_flight)
            sampled[scanned.source["source_id"]] = replace(seen, embedding_width=width, rows_bytes=rows_bytes)
            peak_bytes = max(peak_bytes, peak_child_bytes())
            report.advance()
    return sampled, peak_bytes


def _sampled(source: Source, scanned: Scan, costs: Costs, in_flight: Mapping[str, int]) -> SampledInput:
    row = scanned.source
    parts = {part: float((row.get("scan_parts_cpu_s") or {}).get(part, 0.0)) for part in SCAN_PARTS}
    stage_cpu_s = {stage: cost.cpu_s for stage, cost in costs.items()}
    rest_cpu_s = stage_cpu_s.get("scan", 0.0) - sum(parts.values())  # below 0 at times: both are measured
    stage_cpu_s["scan"] = max(0.0, rest_cpu_s)
    total = Cost(cpu_s=max(0.0, -rest_cpu_s))
    for cost in costs.values():
        total.add(cost)
    return SampledInput(
        size_bytes=float(source.size_bytes or 0),
        error_kind=row.get("error_kind"),
        video_s=row.get("duration_s") or 0.0,
        clips=len(scanned.clips),
        clip_s=row.get("clip_s") or 0.0,
        embedding_width=None,
        stage_cpu_s=parts | stage_cpu_s,
        total=total,
        requests_s=sum(
            _requests_s(costs[name], len(scanned.clips), most) for name, most in in_flight.items() if name in costs
        ),
        rows_bytes=0,
    )


def _requests_s(cost: Cost, clips: int, in_flight: int) -> float:
    """Time of the one worker that asks an endpoint: as many requests are under way as it may send, while an input alone
    may have fewer clips. Frames are read by the same worker."""
    waiting_s = max(0.0, cost.wall_s - cost.cpu_s)
    return cost.cpu_s + waiting_s * min(clips, in_flight) / in_flight


def _requests_in_flight(asked: AskedModels) -> dict[str, int]:
    """Captioner behind an endpoint -> requests that it sends at a time."""
    made = (spec() for spec in asked.captioners)
    return {each.name: each.config.max_in_flight for each in made if isinstance(each, EndpointCaptioner)}


def _score_tables(dataset: Dataset, asked: AskedModels) -> list[ScoreTable]:
    """Tables of captioners and plug-ins' scores, recorded as their first versions."""
    tables = []
    for made in (spec() for spec in (*asked.captioners, *asked.scorers)):
        if made.name in SCORE_COLUMNS:
            continue
        made_with = ScoreVersion(scorer_version=made.version)
        dataset.record_versions(made.root, [RecordedVersion(version=1, made_with=made_with, target="", finished=True)])
        schema = score_schema(made.name, made.columns, sees_captions="captions" in made.needs)
        tables.append(ScoreTable(table=table_of(made.root, 1), schema=schema, version=1, weights_digest=None))
    return tables


def _embedding_width(scanned: Scan) -> int | None:
    embeddings = (clip.get("embedding") for clip in scanned.clips)
    return next((len(each) for each in embeddings if each is not None), None)


def _folder_bytes(dataset: Dataset) -> int:
    return sum(path.stat().st_size for path in Path(dataset.path).rglob("*.parquet"))


def _sharded(dataset: Dataset, folder: str) -> tuple[dict[str, tuple[int, Costs]], int]:
    """Source id -> bytes and costs of the samples of all its clips, with the default settings of `clipmill shard`; and
    the peak of memory of the child that extracts them."""
    config = ShardConfig()
    select_clips(dataset, Rules(name=_SELECTION, where="true"))
    rows, _ = selected_rows(dataset, _SELECTION)
    sharded, peak_bytes = {}, 0
    with _extracting(config) as run:
        for source_id in pc.unique(rows["source_id"]).to_pylist():
            clips = rows.filter(pc.equal(rows["source_id"], source_id))
            samples_bytes = 0
            for plan in plan_shards(clips, kind="clips", config=config):
                with measured("shard"):
                    record = write_shard(plan, folder, selection=_SELECTION, config=config, run=run)
                samples_bytes += _samples_bytes(record)
                Path(folder, plan.name).unlink()
            sharded[source_id] = samples_bytes, take()
            peak_bytes = max(peak_bytes, peak_child_bytes())
    return sharded, peak_bytes


@contextmanager
def _extracting(config: ShardConfig) -> Iterator[Callable[..., Any]]:
    """Calls of functions that extract clips, in a child that has its modules."""
    import webdataset.writer  # noqa: F401  # its import counts for no source

    with Isolated(config.extraction.limits) as child:
        with suppress(SourceError):
            child.run_on("", extract_clips, "", [{"source_id": ""}], "clips", config.extraction)
        take()
        yield partial(_run_on, child)


def _run_on(child: Isolated, function: Callable[..., Any], uri: str, *arguments: Any) -> Any:
    return child.run_on(uri, function, uri, *arguments)


def _samples_bytes(record: ShardRecord) -> int:
    """Of the files in a tar with their headers, without the end of the tar, which many sources share."""
    ranges = record.members.ranges.values() if record.members else ()
    sizes = [found[1] for files in ranges for found in files if found is not None]
    return sum(BLOCKSIZE + -(-size // BLOCKSIZE) * BLOCKSIZE for size in sizes)
