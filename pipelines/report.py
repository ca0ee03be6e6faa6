"""`clipmill report`: write the HTML page of a dataset or a selection, `report/NAME.html`."""

from dataclasses import asdict, dataclass

from clipmill.errors import UserError
from clipmill.storage import reason_of
from curation.dataset.tables import Dataset
from curation.report.model import MOST_CLIPS, build_report
from curation.report.page import write_page
from pipelines.costs import StageCost, read_costs, stage_costs
from pipelines.progress import note

ALL_CLIPS = "all"
"""Name of the page that shows all clips."""


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """Path of the page, and the number of clips on it."""

    file: str
    clips: int
    """Clips in the dataset."""
    shown: int
    """Clips on the page: all, or a sample."""
    with_pictures: int


def report(
    dataset: str, selection: str | None = None, *, against: str | None = None, most_clips: int = MOST_CLIPS
) -> WrittenReport:
    """Write the page of a selection, or of all clips; with `against`, compared with another selection.

    Raises UserError if there is no such dataset or selection, or the page cannot be written.
    """
    opened = Dataset(dataset).open()
    costs = [asdict(cost) for cost in _costs(opened)]
    built = build_report(opened, selection, against, most_clips=most_clips, costs=costs)
    file = write_page(opened, selection or ALL_CLIPS, built)
    return WrittenReport(file=file, clips=built.clips, shown=built.shown, with_pictures=built.with_pictures)


def _costs(dataset: Dataset) -> tuple[StageCost, ...]:
    """What each stage used. A damaged record costs the page its table of stages, not the page."""
    try:
        runs = read_costs(dataset)
    except UserError as error:
        note(f"the report has no costs of stages: {error}")
        return ()
    if not runs:
        return ()
    with dataset.connect() as connection:
        return stage_costs(runs, connection)


def report_at_end(dataset: str, selection: str | None = None) -> str | None:
    """Write the page at the end of a run and print its path. If that fails, print a note and return None."""
    try:
        file = report(dataset, selection).file
    except Exception as error:
        note(f"the report could not be written: {reason_of(error)}. Retry with `clipmill report {dataset}`.")
        return None
    note(f"report: {file}")
    return file
