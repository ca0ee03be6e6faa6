"""Sources whose file was replaced: their rows leave the tables.

Selections and shards keep their clips, since a shard may hold the only copy of footage whose source is gone.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from clipmill import storage
from curation.dataset.source_rows import remove_rows
from curation.dataset.tables import Dataset

_NOTE = "superseded.json"


def superseded_sources(dataset: Dataset, current: Mapping[str, str]) -> set[str]:
    """Sources at an address of `current`, uri -> source id of the file that is there now, that are another file; and
    those that a killed run had begun to remove.

    The file that is there is the newer one, whatever its time stamp: the other can no longer be read.
    """
    replaced = {source_id for source_id, uri in dataset.uris().items() if current.get(uri, source_id) != source_id}
    return replaced | _noted(dataset)


def remove_superseded(
    dataset: Dataset,
    source_ids: Collection[str],
    check: Callable[[], None] = lambda: None,
    *,
    refresh: Callable[[], None] = lambda: None,
) -> None:
    """Remove the rows of sources, see `superseded_sources`. After a kill, call it again.

    `refresh` corrects what other rows say of those that are gone. Call it only when this run owns the dataset; `check`
    raises if another one does by now.
    """
    if source_ids:
        storage.write_json(dataset.fs, dataset.file(_NOTE), {"source_ids": sorted(source_ids)})
        remove_rows(dataset, source_ids, check)
        refresh()
        storage.remove(dataset.fs, dataset.file(_NOTE))


def _noted(dataset: Dataset) -> set[str]:
    return set(storage.read_json_if_exists(dataset.fs, dataset.file(_NOTE), _checked) or ())


def _checked(values: dict[str, Any]) -> list[str]:
    source_ids = values["source_ids"]
    if not isinstance(source_ids, list) or not all(isinstance(source_id, str) for source_id in source_ids):
        raise TypeError("expected source_ids to be strings")
    return source_ids
