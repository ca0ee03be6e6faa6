"""Captions that failed: which sources have some, and how many there are."""

from collections import Counter
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from curation.dataset.tables import Dataset

_LEAVES = [f"captions.list.element.{name}" for name in ("source", "error_kind")]
"""No text is read."""


def sources_with_failed_captions(dataset: Dataset, origins: Collection[str]) -> dict[str, set[str]]:
    """Parts in which captions of these origins failed -> the sources whose captions those are."""
    sources_of: dict[str, set[str]] = {}
    for part in dataset.parts("clips"):
        table = dataset.read_part("clips", part, ["source_id", *_LEAVES])
        captions = table["captions"].combine_chunks()
        failed = pc.and_(_failed(captions), pc.is_in(_flat(captions, "source"), pa.array(origins, pa.string())))
        rows = pc.list_parent_indices(captions).filter(failed)
        if len(rows):
            sources_of[part] = set(table["source_id"].take(rows).to_pylist())
    return sources_of


def count_failed_captions(dataset: Dataset) -> dict[str, int]:
    """Source of captions -> captions that failed, by name."""
    counts: Counter[str] = Counter()
    for part in dataset.parts("clips"):
        captions = dataset.read_part("clips", part, _LEAVES)["captions"].combine_chunks()
        counts.update(_flat(captions, "source").filter(_failed(captions)).to_pylist())
    return dict(sorted(counts.items()))


def _failed(captions: pa.ListArray) -> pa.BooleanArray:
    return pc.fill_null(pc.equal(_flat(captions, "error_kind"), "failed"), False)


def _flat(captions: pa.ListArray, name: str) -> pa.Array:
    """A field of every caption, clip after clip."""
    return pc.struct_field(pc.list_flatten(captions), name)
