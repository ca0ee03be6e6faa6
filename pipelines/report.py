"""`clipmill report`: reads a dataset and writes the page `report/NAME.html` into it."""

from dataclasses import dataclass

from clipmill.storage import reason_of
from curation.dataset.tables import Dataset
from curation.report.model import MOST_CLIPS, build_report
from curation.report.page import write_page
from pipelines.progress import note

ALL_CLIPS = "all"
"""Name of the page without a selection."""


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """The written page, and how many clips it shows."""

    file: str
    clips: int
    """Clips of the dataset."""
    shown: int
    """Clips on the page: all, or a sample."""
    with_pictures: int


def report(
    dataset: str, selection: str | None = None, *, against: str | None = None, most_clips: int = MOST_CLIPS
) -> WrittenReport:
    """Write the page of a selection, or of all clips; with `against`, beside another selection.

    Raises UserError where there is no such dataset or selection, or it cannot be written.
    """
    opened = Dataset(dataset).open()
    built = build_report(opened, selection, against, most_clips=most_clips)
    file = write_page(opened, selection or ALL_CLIPS, built)
    return WrittenReport(file=file, clips=built.clips, shown=built.shown, with_pictures=built.with_pictures)


def report_at_end(dataset: str, selection: str | None = None) -> str | None:
    """Write the page after a run and print its path. A failure does not fail the run: returns None."""
    try:
        file = report(dataset, selection).file
    except Exception as error:
        note(f"the report could not be written: {reason_of(error)}. Retry with `clipmill report {dataset}`.")
        return None
    note(f"report: {file}")
    return file
