"""The note of a removal in progress: which sources go, and why.

While it is there, rows of these sources may be in some files and gone from others: nothing but the removal itself opens
the dataset. After a kill, the next one goes on from the note.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa
from pydantic import TypeAdapter

from clipmill import storage
from curation.dataset.removed import REMOVED
from curation.dataset.tables import REMOVAL, Dataset

ShardAction = Literal["rewrite", "list"]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a removal does."""

    sources: dict[str, str]
    """Source id -> uri."""
    addresses: tuple[str, ...] = ()
    """Given ones that are not in the dataset: recorded, so that they are never scanned."""
    reason: str
    shards: ShardAction = "rewrite"
    started: str
    """Time in UTC, ISO 8601."""
    counts: dict[str, Any] = field(default_factory=dict)
    """What it found before it began."""

    def as_table(self, version: int) -> pa.Table:
        """See `REMOVED`."""
        rows = [*sorted(self.sources.items()), *((None, uri) for uri in self.addresses)]
        return pa.Table.from_pylist(
            [
                {"source_id": i, "uri": uri, "reason": self.reason, "removed": self.started, "version": version}
                for i, uri in rows
            ],
            REMOVED,
        )


_REMOVAL = TypeAdapter(Removal)


def noted_removal(dataset: Dataset) -> Removal | None:
    """The removal in progress, or that of a killed run. Raises UserError if its note is damaged."""
    return storage.read_json_if_exists(dataset.fs, dataset.file(REMOVAL), _REMOVAL.validate_python)


def note_removal(dataset: Dataset, removal: Removal) -> None:
    """From here on only the removal opens the dataset."""
    storage.write_json(dataset.fs, dataset.file(REMOVAL), asdict(removal))


def end_removal(dataset: Dataset) -> None:
    """The dataset is whole again."""
    storage.remove(dataset.fs, dataset.file(REMOVAL))
