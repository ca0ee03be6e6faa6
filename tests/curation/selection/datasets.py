"""Datasets to select from, and what was selected."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.dataset.schemas import CLIPS, SOURCES
from curation.dataset.tables import Dataset
from curation.selection.rules import Rules
from curation.selection.saved import Selection, selected_clips
from curation.selection.select import select_clips


def make(url: str, clips: Sequence[dict[str, Any]], *, parts: int = 2) -> Dataset:
    """A dataset of these clips, spread over parts; ids, source and duration are filled in."""
    dataset = Dataset(url).create_or_open({})
    full = [
        {"clip_id": f"s{i % 3}-{i:04d}-0", "source_id": f"s{i % 3}", "uri": f"/v/{i % 3}", "duration_s": 4.0} | clip
        for i, clip in enumerate(clips)
    ]
    for part in range(parts):
        dataset.write_part("clips", f"p{part}", pa.Table.from_pylist(full[part::parts], schema=CLIPS))
        sources = [{"source_id": f"s{i}", "audio": i == 0} for i in range(3)] if part == 0 else []
        dataset.write_part("sources", f"p{part}", pa.Table.from_pylist(sources, schema=SOURCES))
    return dataset


def rules(where: str | None = None, **columns: dict[str, Any]) -> Rules:
    return Rules.from_values({"name": "test", "rules": columns, "where": where}, origin="test")


def select(dataset: Dataset, asked: Rules, *, replace: bool = True, **options: Any) -> Selection:
    """Under the same name again and again."""
    return select_clips(dataset, asked, replace=replace, **options)


def chosen(dataset: Dataset, name: str = "test") -> list[str]:
    with dataset.fs.open(dataset.file("selections", f"{name}.parquet"), "rb") as file:
        return pq.read_table(file)["clip_id"].to_pylist()


def motions(dataset: Dataset) -> list[float | None]:
    return [row["motion"] for batch in selected_clips(dataset, "test", ["motion"]) for row in batch.to_pylist()]


def check_reconciled(selection: Selection) -> None:
    left, seconds = selection.total_clips, selection.total_seconds
    for step in selection.funnel:
        left -= step.removed + step.unscored_dropped
        assert step.clips_left == left
        assert step.removed <= step.removed_alone
        assert step.unscored_dropped <= step.unscored
        assert step.seconds_left <= seconds
        seconds = step.seconds_left
    assert (left, seconds) == (selection.clips, selection.seconds)
    assert selection.seconds == 4.0 * selection.clips
