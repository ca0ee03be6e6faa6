"""The rows of the selected clips, as shards are written from."""

import pyarrow as pa

from clipmill.errors import UserError
from clipmill.shard_folder import FailedClip
from curation.dataset.joined import COMPUTED, joined_columns, listed_columns
from curation.dataset.joined_captions import is_bookkeeping
from curation.dataset.schemas import SIGNAL_COLUMNS, SOURCES
from curation.dataset.tables import Dataset
from curation.selection.saved import load_selection, selected_clips, selected_ids

_NOT_OF_THE_CLIP = {
    *("scan_cpu_s", "scan_parts_cpu_s", "score_cpu_s", "transitions", "refused_cuts", "note"),
    *("embedding", "text_boxes", "source_captions"),
    *SIGNAL_COLUMNS,
}
"""Columns of the joined view that are not stored in shards; timings would make equal shards differ."""


def selected_rows(data: Dataset, selection: str) -> tuple[pa.Table, list[FailedClip]]:
    """Rows of the selected clips, and the clips that are no longer in the dataset."""
    if load_selection(data, selection).empty:
        raise UserError(f"the selection {selection!r} is empty; there is nothing to write")
    with data.connect() as connection:
        columns = [
            name
            for name, (view, original, _) in listed_columns(joined_columns(connection)).items()
            if name not in _NOT_OF_THE_CLIP
            and (view != "sources" or name in SOURCES.names or (view, original) in COMPUTED)
            and not is_bookkeeping(view, original)
        ]
    batches = list(selected_clips(data, selection, columns))
    chosen = selected_ids(data, selection)["clip_id"].to_pylist()
    present = {clip_id for batch in batches for clip_id in batch["clip_id"].to_pylist()}
    gone = [
        FailedClip(
            clip_id=clip_id, error_kind="gone", error="the clip is no longer in the dataset; rerun `clipmill select`"
        )
        for clip_id in chosen
        if clip_id not in present
    ]
    if not present:
        raise UserError(
            f"{data.url} no longer contains any of the {len(gone):,} clips of {selection!r}; rerun `clipmill select`"
        )
    return pa.Table.from_batches(batches), gone
