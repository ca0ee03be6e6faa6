"""Counts and sums over the sources of a dataset, read from the columns that its tables have."""

from dataclasses import dataclass

import duckdb

from curation.dataset.joined import is_number
from curation.dataset.sql import quoted

_SUMS = ("duration_s", "clip_s", "size_bytes")


@dataclass(frozen=True, kw_only=True)
class SourceTotals:
    """sources = sources_ok + sum of rejected; duration_s = clip_s + sum of lost_s. Times in seconds."""

    sources: int
    sources_ok: int
    rejected: dict[str, int]
    """error_kind -> sources, most common first."""
    duration_s: float
    clip_s: float
    size_bytes: float
    lost_s: dict[str, float]
    """Column such as `lost_transition_s` -> seconds, in the order of the columns."""
    cpu_s: dict[str, float]
    """Column such as `scan_cpu_s` -> CPU seconds, in the order of the columns."""


def source_totals(connection: duckdb.DuckDBPyConnection) -> SourceTotals:
    """Sum the columns of the view `sources`; a column that the dataset lacks counts as 0."""
    described = connection.execute("DESCRIBE sources").fetchall()
    columns = [name for name, kind, *_ in described if is_number(kind)]
    losses = [name for name in columns if name.startswith("lost_") and name.endswith("_s")]
    cpu = [name for name in columns if name.endswith("_cpu_s")]
    names = [*(name for name in _SUMS if name in columns), *losses, *cpu]
    sums = "".join(f", coalesce(sum({quoted(name)}), 0)" for name in names)
    [row] = connection.execute(f"SELECT count(*), count(*) FILTER (status = 'ok'){sums} FROM sources").fetchall()
    by_name = dict(zip(names, map(float, row[2:]), strict=True))
    rejected = connection.execute(
        "SELECT error_kind::VARCHAR, count(*) FROM sources WHERE status = 'rejected' GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    return SourceTotals(
        sources=row[0],
        sources_ok=row[1],
        rejected=dict(rejected),
        lost_s={name: by_name[name] for name in losses},
        cpu_s={name: by_name[name] for name in cpu},
        **{name: by_name.get(name, 0.0) for name in _SUMS},
    )
