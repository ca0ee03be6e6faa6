"""Take the clips of removed sources out of selections and marks."""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import replace

import pyarrow as pa

from clipmill import storage
from curation.dataset.schemas import source_of
from curation.dataset.source_rows import remove_rows_from_file, rows_in_file
from curation.dataset.tables import Dataset
from curation.selection.marks import dataset_marks, write_marks
from curation.selection.saved import SELECTION, lines_of, selected_ids, selection_file, selection_names


def count_selected(dataset: Dataset, source_ids: Collection[str]) -> dict[str, int]:
    """Selection -> its clips of these sources, for selections that have any."""
    ids = pa.array(source_ids, pa.string())
    counts = {name: rows_in_file(dataset.fs, path, ids) for name, path in _files(dataset).items()}
    return {name: clips for name, clips in counts.items() if clips}


def remove_from_selections(
    dataset: Dataset, source_ids: Collection[str], check: Callable[[], None] = lambda: None
) -> None:
    """Remove the clips of these sources from every selection and from the marks; the selections' counts follow.

    Call it before the clips are removed from the tables, which have their durations. After a kill, call it again.
    """
    ids = pa.array(source_ids, pa.string())
    for path in _files(dataset).values():
        remove_rows_from_file(dataset.fs, path, ids, check)
    for name in selection_names(dataset):
        check()
        _recount(dataset, name)
        _forget_queries(dataset, name, source_ids)
    marks = dataset_marks(dataset)
    kept = tuple(mark for mark in marks.marks if source_of(mark.clip_id) not in source_ids)
    if len(kept) < len(marks.marks):
        check()
        write_marks(dataset, replace(marks, marks=kept))


def _recount(dataset: Dataset, name: str) -> None:
    """Correct the counts of a selection that lost clips. They depend on what is left alone, so that a second call finds
    them right."""
    path = selection_file(dataset, name, "json")
    content = storage.read_json(dataset.fs, path, dict)
    selection = SELECTION.validate_python(content)
    ids = selected_ids(dataset, name)
    if ids.num_rows == selection.clips:
        return
    dropped = sum(step.removed + step.unscored_dropped for step in selection.funnel)
    with dataset.connect() as connection:
        connection.register("selected", ids)
        query = "SELECT coalesce(sum(round(duration_s * 1e6)::BIGINT), 0) FROM clips SEMI JOIN selected USING (clip_id)"
        [(microseconds,)] = connection.execute(query).fetchall()
    content |= {
        "clips": ids.num_rows,
        "seconds": int(microseconds) / 1e6,
        "removed_clips": selection.total_clips - dropped - ids.num_rows,
        "clips_sha256": hashlib.sha256(lines_of(ids["clip_id"])).hexdigest(),
    }
    storage.write_json(dataset.fs, path, content)


def _forget_queries(dataset: Dataset, name: str, source_ids: Collection[str]) -> None:
    """Drop the recorded embedding of every `like` on a clip of these sources."""
    path = selection_file(dataset, name, "json")
    content = storage.read_json(dataset.fs, path, dict)
    queries = [like for like in content["resolved"].get("like") or () if "embedding" in like]
    removed = [like for like in queries if source_of(like.get("clip") or "") in source_ids]
    for like in removed:
        del like["embedding"]
    if removed:
        storage.write_json(dataset.fs, path, content)


def _files(dataset: Dataset) -> dict[str, str]:
    """Name of a selection, complete or not -> the file of its clips."""
    paths = storage.list_files(dataset.fs, dataset.file("selections"), ".parquet")
    return {path.rpartition("/")[2].removesuffix(".parquet"): path for path in paths}
