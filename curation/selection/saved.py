"""Selections of a dataset: `selections/NAME.json`, the rules and what each removed, and NAME.parquet, the clips."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from clipmill import storage
from clipmill.config import unknown_name
from clipmill.errors import UserError
from curation.dataset.joined import joined_query
from curation.dataset.sql import batches, quoted
from curation.dataset.tables import Dataset
from curation.selection.steps import FunnelStep

_FOLDER = "selections"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A selection as written: total_clips = clips + removed_clips + removed and unscored_dropped of every step."""

    name: str
    clips: int
    seconds: float
    total_clips: int
    total_seconds: float
    funnel: tuple[FunnelStep, ...]
    rules: dict[str, Any]
    """The rules as written."""
    resolved: dict[str, Any]
    """The rules with resolved bounds, reusable on another dataset."""
    clips_sha256: str
    """SHA-256 of `lines_of` the selected clip ids, in order."""
    marks: dict[str, int] = field(default_factory=dict)
    """Verdict -> clips, of the marks that were applied; `resolved` does not include them."""
    versions: dict[str, int] = field(default_factory=dict)
    """Column of a rule or of `where` -> the version of the score that it was."""
    removed_clips: int = 0
    """Selected clips whose sources were removed from the dataset later; `clips`, `seconds` and the digest are without
    them."""
    dataset_version: int = 0
    """Version of the dataset that the clips were selected from; 0: before its first."""
    dataset_changing: bool = False
    """Whether a run was changing the dataset meanwhile: then its tables held more or less than that version."""

    @property
    def empty(self) -> bool:
        """Whether no clip passed. An empty selection is written; the caller should report an error."""
        return self.clips == 0

    @property
    def starved(self) -> tuple[FunnelStep, ...]:
        """Rules that dropped clips without a score which more than half of all clips lack."""
        return tuple(s for s in self.funnel if s.unscored_dropped and 2 * s.unscored > self.total_clips)


SELECTION = TypeAdapter(Selection)


def load_selection(dataset: Dataset, name: str) -> Selection:
    """Load a selection. Raises UserError with the existing names if there is none of this name."""
    known = selection_names(dataset)
    if name not in known:
        raise UserError(unknown_name("selection", name, known) + " Create one with `clipmill select`.")
    return storage.read_json(dataset.fs, selection_file(dataset, name, "json"), SELECTION.validate_python)


def selection_names(dataset: Dataset) -> list[str]:
    """Names of the complete selections, sorted."""
    files = storage.list_files(dataset.fs, dataset.file("selections"), ".json")
    return [file.rpartition("/")[2].removesuffix(".json") for file in files]


def selected_ids(dataset: Dataset, name: str) -> pa.Table:
    """The column clip_id of a complete selection, sorted."""
    return storage.read_parquet(dataset.fs, selection_file(dataset, name, "parquet"), ["clip_id"])


def lines_of(clip_ids: pa.Array | pa.ChunkedArray) -> bytes:
    """Clip ids, one per line: what the digest of a selection is computed from."""
    return "".join(f"{clip_id}\n" for clip_id in clip_ids.to_pylist()).encode()


def selected_clips(
    dataset: Dataset, name: str, columns: Sequence[str] | None = None, *, batch_rows: int = 10_000
) -> Iterator[pa.RecordBatch]:
    """The rows of the joined view (or some of its columns) for the selected clips, sorted by clip_id."""
    load_selection(dataset, name)
    chosen = selected_ids(dataset, name)
    with dataset.connect() as connection:
        connection.register("selected", chosen)
        wanted = ", ".join(map(quoted, columns)) if columns else "*"
        rows = joined_query(connection, ["clip_id", *columns] if columns else None)
        query = f"SELECT {wanted} FROM ({rows}) SEMI JOIN selected USING (clip_id) ORDER BY clip_id"
        yield from batches(connection, query, batch_rows)


def funnel_rows(selection: Selection) -> list[dict[str, Any]]:
    """The funnel as rows for a table: first all clips, then each rule in order."""
    start = FunnelStep(
        rule="all clips", asked="", clips_left=selection.total_clips, seconds_left=selection.total_seconds
    )
    return [asdict(step) for step in (start, *selection.funnel)]


def selection_file(dataset: Dataset, name: str, suffix: str) -> str:
    """Path of a selection's `json` or `parquet`."""
    return dataset.file(_FOLDER, f"{name}.{suffix}")
