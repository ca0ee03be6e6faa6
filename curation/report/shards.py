"""Position of clips in the shards of a dataset, so that the page can play a clip whose source is out of reach."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipmill import storage
from clipmill.formats import SHARDS
from clipmill.shard_folder import INDEX, parse_record, read_index
from curation.dataset.tables import Dataset
from curation.report.payload import Payload

_MOST_FOLDERS = 16
_LARGEST_INDEX_BYTES = 128 << 20
"""A folder of about a million clips; above that, the page cannot play from it."""


def shards_of(dataset: Dataset, payload: Payload, clip_ids: Sequence[str]) -> list[dict[str, Any]]:
    """For each complete folder of clip shards: the tar of each clip, and where in it the video lies; or why the folder
    cannot be used."""
    folders: list[dict[str, Any]] = []
    for path in storage.list_folders(dataset.fs, dataset.file("shards"))[:_MOST_FOLDERS]:
        name = path.rpartition("/")[2]
        try:
            places = _places(dataset, path, set(clip_ids))
        except (ValueError, TypeError, KeyError) as error:
            folders.append({"name": name, "problem": storage.reason_of(error)})
            continue
        if places:
            found = [places.get(clip_id, (None, 0, 0)) for clip_id in clip_ids]
            columns = {
                "shards": payload.texts([shard for shard, _, _ in found]),
                "offsets": payload.numbers(np.array([offset for _, offset, _ in found], np.float64)),
                "sizes": payload.numbers(np.array([size for _, _, size in found], np.float64)),
            }
            folders.append({"name": name, "problem": None} | columns)
    return folders


def _places(dataset: Dataset, path: str, wanted: set[str]) -> dict[str, tuple[str | None, int, int]]:
    """clip_id -> file name of its tar, offset and size of its video; empty for images and unfinished folders.

    Raises ValueError (UserError), TypeError or KeyError if the index cannot be used.
    """
    index_path = f"{path}/{INDEX}"
    if not storage.exists(dataset.fs, index_path):
        return {}
    if (size := dataset.fs.size(index_path)) > _LARGEST_INDEX_BYTES:
        raise ValueError(f"expected an index of at most {_LARGEST_INDEX_BYTES:,} bytes, got {size:,}")
    index = read_index(storage.address(dataset.fs, path), SHARDS) or {"shards": []}
    return {
        key: (record.name, *place)
        for record in map(parse_record, index["shards"])
        if record.members
        for key, place in zip(record.members.keys, record.members.ranges.get("mp4", ()), strict=False)
        if place and key in wanted
    }
