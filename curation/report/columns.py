"""The columns that the page shows, with meaning, unit and polarity as the tables' own schemas give them."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.columns import bounds_of
from curation.dataset.joined import SCORES, is_number, joined_columns
from curation.dataset.schemas import SCHEMAS
from curation.dataset.sql import quoted
from curation.dataset.tables import Dataset

_LONGEST_LIST = 256
"""Lists of more items are not for reading: the page leaves such a column (an embedding) out."""


@dataclass(frozen=True, kw_only=True)
class ReportColumn:
    """A column of the joined view. Its texts come from files, and can hold anything."""

    name: str
    table: str
    """clips, sources, or the name of an added score."""
    meaning: str
    unit: str
    better: str
    """higher, lower or nothing."""
    bounds: tuple[float, float] | None
    kind: str
    """single, double (numbers by their precision), text or other."""
    slider: bool
    """Whether the page shows its histogram from the start."""

    @property
    def numeric(self) -> bool:
        """Whether a rule can bound it."""
        return self.kind in ("single", "double")

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def report_columns(
    dataset: Dataset, connection: duckdb.DuckDBPyConnection, ruled: Iterable[str] = ()
) -> list[ReportColumn]:
    """All columns of the joined view but long lists, in order. `ruled` are those that rules are about."""
    known, ruled = joined_columns(connection), set(ruled)
    fields = _fields(dataset)
    long_lists = _long_lists(connection, known)
    columns = []
    for name, (view, original, sql_kind) in known.items():
        if name in long_lists:
            continue
        field = fields.get(view, {}).get(original)
        metadata = {key.decode(): value.decode("utf-8", "replace") for key, value in (_metadata(field)).items()}
        kind = _kind(sql_kind)
        numeric, better = is_number(sql_kind), metadata.get("better", "")
        added = view not in SCHEMAS
        columns.append(
            ReportColumn(
                name=name,
                table=view.removeprefix(f"{SCORES}_") if added else view,
                meaning=metadata.get("meaning", ""),
                unit=metadata.get("unit", ""),
                better=better if better in ("higher", "lower") else "",
                bounds=_bounds(field),
                kind=kind,
                slider=numeric and bool(better or name in ruled or (added and not metadata)),
            )
        )
    return columns


def _fields(dataset: Dataset) -> dict[str, dict[str, pa.Field]]:
    """View -> column -> its field in the first part, which has the metadata."""
    fields: dict[str, dict[str, pa.Field]] = {}
    for table in ("clips", "sources", *(f"{SCORES}/{name}" for name in dataset.score_names())):
        schema = SCHEMAS.get(table)
        for part in dataset.parts(table)[:1]:
            with dataset.fs.open(dataset.file(table, f"{part}.parquet"), "rb") as file:
                schema = pq.read_schema(file)
        fields[table.replace("/", "_", 1)] = {field.name: field for field in schema or ()}
    return fields


def _metadata(field: pa.Field | None) -> dict[bytes, bytes]:
    return dict(field.metadata or {}) if field is not None else {}


def _bounds(field: pa.Field | None) -> tuple[float, float] | None:
    try:
        return bounds_of(field) if field is not None else None
    except ValueError:  # a table of someone else's, which means something else by the word
        return None


def _kind(sql_kind: str) -> str:
    if sql_kind == "FLOAT":
        return "single"
    if is_number(sql_kind):
        return "double"
    return "text" if sql_kind == "VARCHAR" else "other"


def _long_lists(connection: duckdb.DuckDBPyConnection, known: Mapping[str, tuple[str, str, str]]) -> set[str]:
    """Columns of lists that are too long for the page. Each table is read on its own: a join would repeat the lists of
    a source for each of its clips."""
    long: set[str] = set()
    for view in dict.fromkeys(view for view, _, _ in known.values()):
        lists = {name: original for name, (of, original, kind) in known.items() if of == view and kind.endswith("[]")}
        if lists:
            longest = ", ".join(f"max(len({quoted(original)}))" for original in lists.values())
            [lengths] = connection.execute(f"SELECT {longest} FROM {quoted(view)}").fetchall()
            long |= {name for name, length in zip(lists, lengths, strict=True) if (length or 0) > _LONGEST_LIST}
    return long
