"""Undo the commit of some sources of a dataset, so that the next run processes them again; other rows are kept.

Call it only when no other run writes into the dataset.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill import storage
from curation.dataset.tables import Dataset

_NOTE = "uncommit.json"
_PART = re.compile(r"[A-Za-z0-9_-]{1,64}")


def uncommit(dataset: Dataset, sources_of: Mapping[str, Collection[str]]) -> None:
    """Remove the rows of these sources: part -> source ids.

    The removal is first recorded in a file, so that `finish_uncommit` can complete it after a kill.
    """
    if sources_of:
        noted = {part: sorted(source_ids) for part, source_ids in sources_of.items()}
        storage.write_json(dataset.fs, dataset.file(_NOTE), noted)
        finish_uncommit(dataset)


def finish_uncommit(dataset: Dataset) -> None:
    """Complete the recorded removal of a killed run, if any. Raises UserError if the record is damaged."""
    noted = storage.read_json_if_exists(dataset.fs, dataset.file(_NOTE), _checked)
    if noted is None:
        return
    for part, source_ids in noted.items():
        for table_name in ("sources", "previews", "clips", *dataset.version_tables()):  # what commits it goes first
            _remove_rows(dataset, table_name, part, source_ids)
    storage.remove(dataset.fs, dataset.file(_NOTE))


def _checked(noted: dict[str, Any]) -> dict[str, list[str]]:
    """Validate names of parts, which become paths and must stay inside the dataset."""
    for part, source_ids in noted.items():
        if not _PART.fullmatch(part):
            raise ValueError(f"{part!r} is not the name of a part")
        if not isinstance(source_ids, list) or not all(isinstance(source_id, str) for source_id in source_ids):
            raise TypeError(f"expected ids of sources for the part {part}")
    return noted


def _remove_rows(dataset: Dataset, table_name: str, part: str, source_ids: list[str]) -> None:
    try:
        table = dataset.read_part(table_name, part)
    except FileNotFoundError:
        return
    column = table["source_id" if table_name in ("sources", "clips") else "clip_id"]
    owners = pc.list_element(pc.split_pattern(column, "-", max_splits=1), 0)  # a clip's id begins with its source's
    remaining = table.filter(pc.invert(pc.is_in(owners, pa.array(source_ids, pa.string()))))
    if not remaining.num_rows and table_name == "sources":
        storage.remove(dataset.fs, dataset.file(table_name, f"{part}.parquet"))
    elif remaining.num_rows < table.num_rows:
        dataset.write_part(table_name, part, remaining)
