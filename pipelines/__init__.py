"""Ray graphs, command line, presets and the demo: everything that runs the other packages."""

from pipelines.config import CurateConfig
from pipelines.curate import CurateResult, curate
from pipelines.inspect import Inspection, inspect
from pipelines.select import select
from pipelines.shard import ShardRun, shard
from pipelines.status import Status, status

__all__ = [
    "CurateConfig",
    "CurateResult",
    "Inspection",
    "ShardRun",
    "Status",
    "curate",
    "inspect",
    "select",
    "shard",
    "status",
]
