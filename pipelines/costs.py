"""What runs on a dataset cost: a record per run in `DATASET/costs/`, and its price at given rates.

A record is rewritten every half minute, so that a run that is killed loses little of it.
"""

import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any

import duckdb
from pydantic import Field, TypeAdapter

from clipmill import storage
from clipmill.config import Config
from clipmill.costs import Cost, Costs, as_values, charge, measured, take
from curation.dataset.schemas import SCAN_PARTS
from curation.dataset.tables import COSTS, Dataset
from pipelines.graph import cluster_nodes
from pipelines.machine import usable_cpus
from pipelines.metrics import export_costs
from pipelines.repeated import repeated

_FLUSH_S = 30.0
_recording: list["Record"] = []
"""The record under way in this process."""
DRIVER = "driver"
"""The stage that stands for the driver: listing, reading tables, starting Ray."""


class Prices(Config):
    """Rates, in any currency."""

    cpu_hour: float = Field(0, ge=0)
    """Per CPU hour."""
    gpu_hour: float = Field(0, ge=0)
    """Per GPU hour."""
    million_tokens_in: float = Field(0, ge=0)
    """Per million tokens that a captioner's endpoint reads."""
    million_tokens_out: float = Field(0, ge=0)
    """Per million tokens that it writes."""
    gb_month: float = Field(0, ge=0)
    """Per gigabyte (10^9 bytes) stored for a month."""

    def of(self, cost: Cost) -> float:
        """The price of what a stage used."""
        hours = self.cpu_hour * cost.cpu_s + self.gpu_hour * cost.gpu_s
        tokens = self.million_tokens_in * cost.tokens_in + self.million_tokens_out * cost.tokens_out
        return hours / 3600 + tokens / 1e6

    @property
    def stated(self) -> bool:
        """Whether any rate was given."""
        return any(self.model_dump().values())


@dataclass(frozen=True, kw_only=True)
class RunCosts:
    """The record of a run."""

    command: str
    started_at: str
    wall_s: float
    cpus: float
    """CPUs of its machine or cluster."""
    gpus: float
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def costs(self) -> Costs:
        """Stage -> what it used. Raises TypeError for values that are not numbers."""
        known = {each.name for each in fields(Cost)}
        costs: Costs = {}
        for stage, values in self.stages.items():
            if not all(isinstance(value, int | float) for value in values.values()):
                raise TypeError(f"expected numbers for the stage {stage!r}")
            costs[str(stage)] = Cost(**{name: value for name, value in values.items() if name in known})
        return costs


@contextmanager
def recorded_costs(dataset: Dataset, command: str) -> Iterator["Record"]:
    """Record what the stages in this block cost, and the rest of the driver. Nothing is written if no stage ran, nor
    within the block of another record, which has these costs as well."""
    record = Record(dataset, command)
    if _recording:
        yield record
        return
    take()  # of an earlier run in this process
    _recording.append(record)
    try:
        with repeated(record.write, every_s=_FLUSH_S, name="clipmill-costs", once_more=True):
            yield record
    finally:
        _recording.remove(record)


@contextmanager
def measured_here(stage: str) -> Iterator[None]:
    """Count a block of the driver for a stage of its own."""
    before_s = time.process_time()
    try:
        with measured(stage):
            yield
    finally:
        charge(DRIVER, Cost(cpu_s=before_s - time.process_time()))


class Record:
    """The file of a run."""

    def __init__(self, dataset: Dataset, command: str) -> None:
        self._dataset, self._command = dataset, command
        self._started_s, self._cpu_before_s = time.monotonic(), time.process_time()
        self._started_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._name = f"{re.sub('[:-]', '', self._started_at)}-{command}-{secrets.token_hex(3)}.json"
        self._spent: Costs = {}
        self._discarded = False

    def discard(self) -> None:
        """Write nothing: the run had nothing to do."""
        self._discarded = True

    def write(self) -> None:
        """Write the costs so far. An error is ignored: a run must not fail for its record."""
        with suppress(Exception):
            self._write()

    def _write(self) -> None:
        taken = take()
        export_costs(self._command, taken)
        for stage, cost in taken.items():
            self._spent.setdefault(stage, Cost()).add(cost)
        if self._discarded or not self._spent.keys() - {DRIVER}:
            return
        wall_s = time.monotonic() - self._started_s
        driver = Cost(cpu_s=time.process_time() - self._cpu_before_s, wall_s=wall_s)
        driver.add(self._spent.get(DRIVER, Cost()))
        cpus, gpus = _machine()
        run = RunCosts(
            command=self._command,
            started_at=self._started_at,
            wall_s=round(wall_s, 3),
            cpus=cpus,
            gpus=gpus,
            stages=as_values(self._spent | {DRIVER: driver}),
        )
        storage.write_json(self._dataset.fs, self._dataset.file(COSTS, self._name), asdict(run))


def read_costs(dataset: Dataset) -> list[RunCosts]:
    """The records of all runs, oldest first. Raises UserError if one is damaged."""
    paths = storage.list_files(dataset.fs, dataset.file(COSTS), ".json")
    return [storage.read_json(dataset.fs, path, _checked) for path in paths]


def _checked(values: dict[str, Any]) -> RunCosts:
    run = _RUN.validate_python(values)
    run.costs()
    return run


_RUN = TypeAdapter(RunCosts)


def _machine() -> tuple[float, float]:
    """CPUs and GPUs of the cluster, or of this machine."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return float(usable_cpus()), 0.0
    nodes = cluster_nodes()
    return sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage used in all runs of a dataset."""

    stage: str
    """decode, cuts, motion, thumbnails: parts of the scan, whose rest is `scan`; or the name of a model or command."""
    cpu_s: float
    gpu_s: float = 0.0
    wall_s: float = 0.0
    """Time that its workers were busy, added up; 0 for parts of the scan."""
    tokens_in: int = 0
    tokens_out: int = 0
    bytes: int = 0
    """Read by `decode`; in the dataset, of the others."""

    def price(self, prices: Prices) -> float:
        """Its price at these rates."""
        used = Cost(cpu_s=self.cpu_s, gpu_s=self.gpu_s, tokens_in=self.tokens_in, tokens_out=self.tokens_out)
        return prices.of(used)


def stage_costs(
    runs: Sequence[RunCosts],
    connection: duckdb.DuckDBPyConnection,
    stage_bytes: Mapping[str, int] = MappingProxyType({}),
) -> tuple[StageCost, ...]:
    """The records added up by stage, in the order of the pipeline; the scan is divided as recorded in the sources.

    `stage_bytes`: see `StageCost.bytes`.
    """
    total: Costs = {}
    for run in runs:
        for stage, cost in run.costs().items():
            total.setdefault(stage, Cost()).add(cost)
    parts = _scan_parts(connection)
    if "scan" in total:
        total["scan"].cpu_s = max(0.0, total["scan"].cpu_s - sum(parts.values()))
    for part, seconds in parts.items():
        total.setdefault(part, Cost()).cpu_s += seconds
    first = {stage: place for place, stage in enumerate((*SCAN_PARTS, "scan"))}
    last = {stage: place for place, stage in enumerate(("write", "duplicates", "shard", DRIVER), len(first) + 1)}
    places = first | last
    return tuple(
        StageCost(
            stage=stage,
            cpu_s=total[stage].cpu_s,
            gpu_s=total[stage].gpu_s,
            wall_s=total[stage].wall_s,
            tokens_in=total[stage].tokens_in,
            tokens_out=total[stage].tokens_out,
            bytes=stage_bytes.get(stage, 0),
        )
        for stage in sorted(total, key=lambda stage: (places.get(stage, len(first)), stage))
    )


def _scan_parts(connection: duckdb.DuckDBPyConnection) -> dict[str, float]:
    """CPU seconds of the parts of all scans, of a dataset whose sources have them."""
    names = {name for name, *_ in connection.execute("DESCRIBE sources").fetchall()}
    if "scan_parts_cpu_s" not in names:
        return {}
    sums = ", ".join(f"coalesce(sum(scan_parts_cpu_s.{part}), 0)" for part in SCAN_PARTS)
    [row] = connection.execute(f"SELECT {sums} FROM sources").fetchall()
    return {part: float(seconds) for part, seconds in zip(SCAN_PARTS, row, strict=True) if seconds}
