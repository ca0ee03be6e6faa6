"""`clipmill plan`: what a run over inputs will take, measured on a sample of them.

The sample is drawn with a seed and goes through the real scan and the real models. Totals are ratio estimates by the
size of the files (Cochran, Sampling Techniques, 6.3), with intervals of 95 % from the spread within the sample.
"""

import math
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import NormalDist

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.costs import Cost, Costs, measured, peak_child_bytes, take
from clipmill.errors import SourceError, UserError
from clipmill.pipeline import loaded
from curation.dataset.schemas import SCAN_PARTS
from curation.inputs.sources import Source, list_sources
from curation.scan.isolation import Isolated
from curation.scan.one_pass import Scan
from pipelines.config import CurateConfig
from pipelines.costs import Prices
from pipelines.machine import usable_cpus
from pipelines.model_specs import asked_models, load_models
from pipelines.parts import scan_safely, tables_of
from pipelines.progress import Reporter, note
from pipelines.scoring import clip_stages

_CONFIDENCE = 0.95
_KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A total over all inputs, and the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take. CPU and GPU times are those of this machine's; scans and scores only."""

    sources: int
    source_bytes: int | None
    """None if the size of some is not known: then every input counts the same."""
    sampled: int
    rejected: dict[str, int]
    """Of the sample: error kind -> inputs."""
    sample_s: float
    """Time that the sample took."""
    device: str
    video_s: Estimate
    clips: Estimate
    clip_s: Estimate
    stages: dict[str, Estimate]
    """Stage or part of the scan -> CPU seconds."""
    cpu_s: Estimate
    gpu_s: Estimate
    tokens_in: Estimate
    tokens_out: Estimate
    dataset_bytes: Estimate
    shard_bytes: Estimate
    """If every clip is kept."""
    cores: int
    gpus: float
    """Number of GPUs that keep up with the cores."""
    wall_s: Estimate
    """With all cores busy."""
    memory_bytes: int
    """Per core: a worker with its models, and the child that scans, at their peaks in the sample."""
    scan_limit_bytes: int
    """What a scan may use at most."""
    prices: Prices = field(default_factory=Prices)
    price: Estimate = field(default_factory=lambda: Estimate(value=0, low=0, high=0))
    """Of CPUs, GPUs and tokens."""
    price_per_month: Estimate = field(default_factory=lambda: Estimate(value=0, low=0, high=0))
    """Of the dataset and shards of all clips."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Costs and results of one input."""

    size_bytes: float
    error_kind: str | None
    video_s: float
    clips: int
    clip_s: float
    stage_cpu_s: dict[str, float]
    total: Cost
    rows_bytes: int


def plan(
    inputs: Sequence[str],
    config: CurateConfig | None = None,
    *,
    sample: int = 20,
    seed: int = 0,
    cores: int | None = None,
    prices: Prices | None = None,
    quiet: bool = False,
) -> Plan:
    """Estimate a run of `curate` on inputs with `cores`, by default those of this machine.

    Writes nothing, but captioners behind an endpoint are asked for the clips of the sample. Raises UserError: no usable
    input, missing weights.
    """
    config, cores = config or CurateConfig(), cores or usable_cpus()
    with Reporter("plan", unit="sampled inputs", quiet=quiet) as report:
        report.waiting("listing the inputs")
        listing = list_sources(inputs, config.inputs)
        sources = list(listing)
        for remark in () if quiet else listing.notes:
            note(remark)
        if not sources:
            raise UserError("no usable input: no videos found")
        report.waiting("loading the models")
        device = _device()
        for notice in load_models(asked_models(config), device).notices:
            note(notice)
        chosen = random.Random(seed).sample(sources, min(sample, len(sources)))
        report.begin(len(chosen))
        started_s = time.monotonic()
        seen, memory_bytes = _measure(chosen, config, device, report)
        sample_s = time.monotonic() - started_s
    return _extrapolated(sources, seen, config, cores, prices or Prices(), sample_s, device, memory_bytes)


def _measure(chosen: Sequence[Source], config: CurateConfig, device: str, report: Reporter) -> tuple[list[_Seen], int]:
    """What each input takes, and the peak of memory of a worker and its child."""
    score = loaded(clip_stages(config), device, gpus=float(device == "cuda"))
    seen, peak_bytes = [], 0
    with Isolated(config.scan.limits) as child:
        # The first call makes the child import its modules; a run does that once for thousands of inputs.
        unreadable = Source(uri="", error=SourceError("unreadable", "only to start the child"))
        scan_safely(child, unreadable, config)
        take()
        for source in chosen:
            with measured("scan"):
                scanned = scan_safely(child, source, config)
            (scanned,) = score([scanned])
            seen.append(_seen(source, scanned, take()))
            peak_bytes = max(peak_bytes, peak_child_bytes())
            report.advance()
    own_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
    return seen, own_bytes + peak_bytes


def _seen(source: Source, scanned: Scan, costs: Costs) -> _Seen:
    row = scanned.source
    parts = {part: float((row.get("scan_parts_cpu_s") or {}).get(part, 0.0)) for part in SCAN_PARTS}
    stage_cpu_s = {stage: cost.cpu_s for stage, cost in costs.items()}
    stage_cpu_s["scan"] = max(0.0, stage_cpu_s.get("scan", 0.0) - sum(parts.values()))
    total = Cost()
    for cost in costs.values():
        total.add(cost)
    return _Seen(
        size_bytes=float(source.size_bytes or 0),
        error_kind=row.get("error_kind"),
        video_s=row.get("duration_s") or 0.0,
        clips=len(scanned.clips),
        clip_s=row.get("clip_s") or 0.0,
        stage_cpu_s=parts | stage_cpu_s,
        total=total,
        rows_bytes=sum(_written_bytes(table) for table in tables_of([scanned]).values()),
    )


def _written_bytes(table: pa.Table) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return int(sink.getvalue().size)


def _extrapolated(
    sources: Sequence[Source],
    seen: Sequence[_Seen],
    config: CurateConfig,
    cores: int,
    prices: Prices,
    sample_s: float,
    device: str,
    memory_bytes: int,
) -> Plan:
    sizes = [source.size_bytes for source in sources]
    known = all(sizes) and sum(each.size_bytes for each in seen) > 0
    total = float(sum(size or 0 for size in sizes)) if known else float(len(sources))
    weights = [each.size_bytes if known else 1.0 for each in seen]

    def of(value: Callable[[_Seen], float]) -> Estimate:
        return ratio_estimate([value(each) for each in seen], weights, total, population=len(sources))

    stages = dict.fromkeys(stage for each in seen for stage in each.stage_cpu_s)
    cpu_s, gpu_s = of(lambda each: each.total.cpu_s), of(lambda each: each.total.gpu_s)
    dataset_bytes = of(lambda each: each.rows_bytes)
    shard_bytes = of(_kept_bytes)
    wall_s = _scaled(cpu_s, 1 / cores)
    return Plan(
        sources=len(sources),
        source_bytes=int(total) if known else None,
        sampled=len(seen),
        rejected=dict(Counter(each.error_kind for each in seen if each.error_kind)),
        sample_s=sample_s,
        device=device,
        video_s=of(lambda each: each.video_s),
        clips=of(lambda each: each.clips),
        clip_s=of(lambda each: each.clip_s),
        stages={stage: of(partial(_cpu_s_of, stage)) for stage in stages},
        cpu_s=cpu_s,
        gpu_s=gpu_s,
        tokens_in=of(lambda each: each.total.tokens_in),
        tokens_out=of(lambda each: each.total.tokens_out),
        dataset_bytes=dataset_bytes,
        shard_bytes=shard_bytes,
        cores=cores,
        gpus=gpu_s.value / wall_s.value if wall_s.value else 0.0,
        wall_s=wall_s,
        memory_bytes=memory_bytes,
        scan_limit_bytes=config.scan.limits.memory_bytes,
        prices=prices,
        price=of(lambda each: prices.of(each.total)),
        price_per_month=_scaled(of(lambda each: each.rows_bytes + _kept_bytes(each)), prices.gb_month / 1e9),
    )


def ratio_estimate(
    values: Sequence[float], weights: Sequence[float], total_weight: float, *, population: int
) -> Estimate:
    """The total of values over a population, from a sample of n of them, by their ratio to weights whose total is
    known.

    The interval is Student's for the residuals, with the correction for a finite population; infinite above for a
    single value, and none if the sample is the population.
    """
    n = len(values)
    ratio = sum(values) / sum(weights)
    value = ratio * total_weight
    if n == population:
        return Estimate(value=value, low=value, high=value)
    if n < 2:
        return Estimate(value=value, low=0.0, high=math.inf)
    residuals = [v - ratio * w for v, w in zip(values, weights, strict=True)]
    variance = sum(residual**2 for residual in residuals) / (n - 1)
    # In units of the whole: the mean weight of the sample stands for the sum of n of its members.
    error = math.sqrt(variance * (1 - n / population) / n) / (sum(weights) / n) * total_weight
    half = _student(n - 1) * error
    return Estimate(value=value, low=max(0.0, value - half), high=value + half)


def _student(freedom: int) -> float:
    """Quantile of Student's t for the interval; the Cornish-Fisher expansion, within 1 % from 4 degrees of freedom."""
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(value=estimate.value * factor, low=estimate.low * factor, high=estimate.high * factor)


def _cpu_s_of(stage: str, each: _Seen) -> float:
    return each.stage_cpu_s.get(stage, 0.0)


def _kept_bytes(each: _Seen) -> float:
    return each.size_bytes * each.clip_s / each.video_s if each.video_s else 0.0


def _device() -> str:
    """Where models run: on a GPU of this machine, if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
