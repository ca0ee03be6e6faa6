"""`clipmill plan`: what `curate` and `shard` over inputs will take, measured on a sample of them.

The sample is drawn with a seed and goes through the real scan, the real models and the writer of shards. Totals are
ratio estimates by the size of the files (Cochran, Sampling Techniques, 6.3), with intervals of 95 % from the spread
within the sample. The search for near-duplicates grows faster than its clips: see `pipelines.plan_duplicates`.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import NormalDist

from clipmill.errors import UserError
from curation.dedup.config import HASH_BITS
from curation.inputs.sources import Source, list_sources
from pipelines.config import CurateConfig
from pipelines.costs import Prices
from pipelines.machine import usable_cpus
from pipelines.model_specs import asked_models, load_models
from pipelines.plan_duplicates import SearchCost, measure_search
from pipelines.plan_sample import Sample, SampledInput, measure_sample
from pipelines.progress import Reporter, note

_CONFIDENCE = 0.95
_DUPLICATES = "duplicates"
_HASHED_PICTURES = 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A total over all inputs, and the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `curate`, and `shard` of every clip, will take. CPU and GPU times are those of this machine."""

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
    """Stage or part of the scan -> CPU seconds. Of `duplicates`, the bounds are those of the number of clips."""
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
    """With all cores busy; or of the one worker that asks captioners' endpoints, if that takes longer."""
    requests_s: Estimate
    """Of that worker, with `max_in_flight` requests under way."""
    memory_bytes: int
    """Per core: a worker with its models, and its child, at their peaks in the sample."""
    search_bytes: int
    """Of the process that searches for near-duplicates; on a cluster, its nodes hold half of it."""
    scan_limit_bytes: int
    """What a scan may use at most."""
    prices: Prices = field(default_factory=Prices)
    price: Estimate = field(default_factory=lambda: Estimate(value=0, low=0, high=0))
    """Of CPUs, GPUs and tokens."""
    price_per_month: Estimate = field(default_factory=lambda: Estimate(value=0, low=0, high=0))
    """Of the dataset and shards of all clips."""


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
    """Estimate `curate` on inputs, and `shard` of all their clips, with `cores`, by default those of this machine.

    Writes into a temporary folder alone. Captioners behind an endpoint are asked for the clips of the sample. Raises
    UserError: no usable input, missing weights.
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
        measured = measure_sample(chosen, config, device, report)
        totals = _Totals(sources, measured.inputs)
        report.waiting("measuring the search for near-duplicates")
        search = _search(config, totals.of(lambda each: each.clips), measured.inputs)
        sample_s = time.monotonic() - started_s
    return _extrapolated(totals, measured, search, config, cores, prices or Prices(), sample_s, device)


class _Totals:
    """Estimates of totals over all inputs, from those that were sampled."""

    def __init__(self, sources: Sequence[Source], sampled: Sequence[SampledInput]) -> None:
        sizes = [source.size_bytes for source in sources]
        known = all(sizes) and sum(each.size_bytes for each in sampled) > 0
        self.sources, self._sampled = len(sources), sampled
        self.source_bytes = sum(size or 0 for size in sizes) if known else None
        self._total = float(self.source_bytes if self.source_bytes is not None else len(sources))
        self._weights = [each.size_bytes if known else 1.0 for each in sampled]

    def of(self, value: Callable[[SampledInput], float]) -> Estimate:
        """The total of a value of each input."""
        values = [value(each) for each in self._sampled]
        return ratio_estimate(values, self._weights, self._total, population=self.sources)


def _search(config: CurateConfig, clips: Estimate, sampled: Sequence[SampledInput]) -> SearchCost | None:
    """What the search for near-duplicates costs at the end of `curate`; None without one."""
    if config.duplicates is None or not clips.value:
        return None
    embedded = next((each.embedding_width for each in sampled if each.embedding_width), None)
    by = config.duplicates.by or ("embedding" if embedded else "picture_hash")
    width = embedded if by == "embedding" else _HASHED_PICTURES * HASH_BITS
    return measure_search(round(clips.value), width, config.duplicates) if width else None


def _extrapolated(
    totals: _Totals,
    sample: Sample,
    search: SearchCost | None,
    config: CurateConfig,
    cores: int,
    prices: Prices,
    sample_s: float,
    device: str,
) -> Plan:
    of, seen = totals.of, sample.inputs
    clips = of(lambda each: each.clips)
    stages = {
        stage: of(partial(_cpu_s_of, stage)) for stage in dict.fromkeys(s for each in seen for s in each.stage_cpu_s)
    }
    cpu_s, gpu_s = of(lambda each: each.total.cpu_s), of(lambda each: each.total.gpu_s)
    price = of(lambda each: prices.of(each.total))
    if search is not None:
        stages[_DUPLICATES] = _mapped(clips, search.at)
        cpu_s = _sum(cpu_s, stages[_DUPLICATES])
        price = _sum(price, _scaled(stages[_DUPLICATES], prices.cpu_hour / 3600))
    requests_s = of(lambda each: each.requests_s)
    wall_s = max(_scaled(cpu_s, 1 / cores), requests_s, key=lambda estimate: estimate.value)
    return Plan(
        sources=totals.sources,
        source_bytes=totals.source_bytes,
        sampled=len(seen),
        rejected=dict(Counter(each.error_kind for each in seen if each.error_kind)),
        sample_s=sample_s,
        device=device,
        video_s=of(lambda each: each.video_s),
        clips=clips,
        clip_s=of(lambda each: each.clip_s),
        stages=stages,
        cpu_s=cpu_s,
        gpu_s=gpu_s,
        tokens_in=of(lambda each: each.total.tokens_in),
        tokens_out=of(lambda each: each.total.tokens_out),
        dataset_bytes=of(lambda each: each.rows_bytes),
        shard_bytes=of(lambda each: each.shard_bytes),
        cores=cores,
        gpus=gpu_s.value / wall_s.value if wall_s.value else 0.0,
        wall_s=wall_s,
        requests_s=requests_s,
        memory_bytes=sample.memory_bytes,
        search_bytes=round(search.bytes_per_clip * clips.value) if search else 0,
        scan_limit_bytes=config.scan.limits.memory_bytes,
        prices=prices,
        price=price,
        price_per_month=_scaled(of(lambda each: each.rows_bytes + each.shard_bytes), prices.gb_month / 1e9),
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
    return _mapped(estimate, lambda value: value * factor) if factor else Estimate(value=0, low=0, high=0)


def _mapped(estimate: Estimate, function: Callable[[float], float]) -> Estimate:
    return Estimate(value=function(estimate.value), low=function(estimate.low), high=function(estimate.high))


def _sum(one: Estimate, other: Estimate) -> Estimate:
    return Estimate(value=one.value + other.value, low=one.low + other.low, high=one.high + other.high)


def _cpu_s_of(stage: str, each: SampledInput) -> float:
    return each.stage_cpu_s.get(stage, 0.0)


def _device() -> str:
    """Where models run: on a GPU of this machine, if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
