"""The columns on the page, with meaning, unit and polarity from the schemas of the tables."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.columns import bounds_of
from curation.dataset.joined import COMPUTED, is_number, is_pinned, joined_columns, score_of
from curation.dataset.schemas import SCHEMAS
from curation.dataset.sql import quoted
from curation.dataset.tables import Dataset

_LONGEST_LIST = 256
"""Columns with longer lists, such as embeddings, are not shown."""


@dataclass(frozen=True, kw_only=True)
class ReportColumn:
    """A column of the joined view. Its texts come from files and may contain anything."""

    name: str
    table: str
    """clips, sources, or the name of an added score."""
    meaning: str
    unit: str
    better: str
    """higher, lower or empty."""
    bounds: tuple[float, float] | None
    kind: str
    """single or double (numbers by precision), text, or other."""
    slider: bool
    """Whether the page opens with its histogram."""

    @property
    def numeric(self) -> bool:
        """Whether a rule can set a threshold on it."""
        return self.kind in ("single", "double")

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def report_columns(
    dataset: Dataset, connection: duckdb.DuckDBPyConnection, ruled: Iterable[str] = (), needed: Iterable[str] = ()
) -> list[ReportColumn]:
    """The columns of the joined view in order, without long lists. `ruled` names the columns that have a rule, `needed`
    others that rules on groups read."""
    known, ruled = joined_columns(connection), set(ruled)
    named = ruled | set(needed)
    fields = fields_of(dataset)
    long_lists = _long_lists(connection, known)
    columns = []
    for name, (view, original, sql_kind) in known.items():
        if name in long_lists or (is_pinned(name, known[name]) and name not in named):
            continue
        field = fields.get(view, {}).get(original)
        metadata = metadata_of(field)
        kind = _kind(sql_kind)
        numeric, better = is_number(sql_kind), metadata.get("better", "")
        added = view not in SCHEMAS
        table = "clips" if (view, original) in COMPUTED else view  # of a source's captions, a clip has some
        columns.append(
            ReportColumn(
                name=name,
                table=score_of(view) if added else table,
                meaning=metadata.get("meaning", ""),
                unit=metadata.get("unit", ""),
                better=better if better in ("higher", "lower") else "",
                bounds=_bounds(field),
                kind=kind,
                slider=numeric and bool(better or name in ruled or (added and not metadata)),
            )
        )
    return columns


def fields_of(dataset: Dataset) -> dict[str, dict[str, pa.Field]]:
    """View -> column -> field with its metadata, from the first part of the table."""
    fields: dict[str, dict[str, pa.Field]] = {}
    for view, table in dataset.views().items():
        schema = SCHEMAS.get(table)
        for part in dataset.parts(table)[:1]:
            with dataset.fs.open(dataset.file(table, f"{part}.parquet"), "rb") as file:
                schema = pq.read_schema(file)
        fields[view] = {field.name: field for field in schema or ()}
    return fields


def metadata_of(field: pa.Field | None) -> dict[str, str]:
    """Metadata of a field: meaning, unit, better; empty if there is none."""
    metadata = (field.metadata or {}) if field is not None else {}
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in metadata.items()}


def _bounds(field: pa.Field | None) -> tuple[float, float] | None:
    try:
        return bounds_of(field) if field is not None else None
    except ValueError:  # written by another tool, with another meaning of "bounds"
        return None


def _kind(sql_kind: str) -> str:
    if sql_kind == "FLOAT":
        return "single"
    if is_number(sql_kind):
        return "double"
    return "text" if sql_kind == "VARCHAR" else "other"


def _long_lists(connection: duckdb.DuckDBPyConnection, known: Mapping[str, tuple[str, str, str]]) -> set[str]:
    """Columns with lists too long for the page. Tables are read one by one, because a join would repeat the lists of a
    source for each of its clips."""
    long: set[str] = set()
    for view in dict.fromkeys(view for view, _, _ in known.values()):
        lists = {
            name: original
            for name, (of, original, kind) in known.items()
            if of == view and kind.endswith("[]") and (of, original) not in COMPUTED
        }
        if lists:
            longest = ", ".join(f"max(len({quoted(original)}))" for original in lists.values())
            [lengths] = connection.execute(f"SELECT {longest} FROM {quoted(view)}").fetchall()
            long |= {name for name, length in zip(lists, lengths, strict=True) if (length or 0) > _LONGEST_LIST}
    return long
