"""Marks: verdicts on single clips, exported from the report and applied by a selection."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import duckdb

from clipmill import storage
from clipmill.errors import UserError
from curation.dataset.sql import literal
from curation.dataset.tables import Dataset
from curation.selection.outcomes import KEPT, REMOVED, UNSCORED, Test

Verdict = Literal["keep", "drop", "bad cut", "wrong score"]
MARKS = "--marks"
"""Name of the funnel step that drops marked clips."""
_FORMAT = "clipmill marks"
_FILE = "marks.json"
_TABLE = "_marks"
_DROPPING: tuple[Verdict, ...] = ("bad cut", "drop")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A verdict on a clip. For a wrong score, `score` is its column."""

    clip_id: str
    verdict: Verdict
    score: str | None = None


@dataclass(frozen=True, kw_only=True)
class Marks:
    """At most one mark per clip."""

    marks: tuple[Mark, ...] = ()
    dataset_fingerprint: str | None = None

    def counts(self) -> dict[str, int]:
        """Verdict -> clips."""
        return dict(sorted(Counter(mark.verdict for mark in self.marks).items()))


def load_marks(address: str) -> Marks:
    """Read a marks file exported from the report. Raises UserError if it is missing or not a marks file."""
    fs, path = storage.filesystem(address)
    try:
        return storage.read_json(fs, path, _parsed)
    except FileNotFoundError as error:
        raise UserError(f"no marks file at {storage.shown(fs, path)}: export one from the report") from error


def dataset_marks(dataset: Dataset) -> Marks:
    """All marks applied to selections of this dataset."""
    return storage.read_json_if_exists(dataset.fs, dataset.file(_FILE), _parsed) or Marks()


def keep_marks(dataset: Dataset, marks: Marks) -> None:
    """Add marks to those of the dataset. A new mark replaces the older one of the same clip."""
    merged = {mark.clip_id: mark for known in (dataset_marks(dataset), marks) for mark in known.marks}
    write_marks(dataset, replace(marks, marks=tuple(merged.values())))


def write_marks(dataset: Dataset, marks: Marks) -> None:
    """Replace the marks of the dataset."""
    rows = [
        {"clip_id": mark.clip_id, "verdict": mark.verdict} | ({"score": mark.score} if mark.score else {})
        for mark in sorted(marks.marks, key=lambda mark: mark.clip_id)
    ]
    content = {"format": _FORMAT, "dataset_fingerprint": marks.dataset_fingerprint, "marks": rows}
    storage.write_json(dataset.fs, dataset.file(_FILE), content)


def check_marks(marks: Marks, fingerprint: str, url: str) -> None:
    """Raise UserError for marks of another dataset."""
    if marks.dataset_fingerprint not in (None, fingerprint):
        raise UserError(
            f"these marks were exported from a dataset with a different configuration than {url}: export them from the "
            "report of this dataset"
        )


def with_marks(connection: duckdb.DuckDBPyConnection, tests: Sequence[Test], marks: Marks) -> list[Test]:
    """Let clips marked `keep` pass every test, treat a `wrong score` as unscored, and add a test that drops the rest.

    Creates the table of marks, which `curation.selection.funnel` joins.
    """
    columns = {
        "clip_id": [mark.clip_id for mark in marks.marks],
        "_mark": [mark.verdict for mark in marks.marks],
        "_mark_score": [mark.score for mark in marks.marks],
    }
    listed = ", ".join(f"unnest(${name}::VARCHAR[]) AS {name}" for name in columns)
    connection.execute(f"CREATE TEMP TABLE {_TABLE} AS SELECT {listed}", columns)

    def marked(test: Test, outcome: str) -> str:
        wrong = f"_mark = 'wrong score' AND _mark_score = {literal(test.name)}"
        return f"CASE WHEN _mark = 'keep' THEN {KEPT} WHEN {wrong} THEN {UNSCORED} ELSE ({outcome}) END"

    tables = frozenset({_TABLE})
    wrapped = [
        replace(
            test,
            outcome=marked(test, test.outcome),
            outcome_alone=test.outcome_alone and marked(test, test.outcome_alone),
            tables=test.tables | tables,
        )
        for test in tests
    ]
    dropped = ", ".join(map(literal, _DROPPING))
    outcome = f"CASE WHEN _mark IN ({dropped}) THEN {REMOVED} ELSE {KEPT} END"
    return [*wrapped, Test(name=MARKS, columns=frozenset(), outcome=outcome, tables=tables)]


def _parsed(values: dict[str, Any]) -> Marks:
    if values["format"] != _FORMAT:
        raise ValueError(f"expected the format {_FORMAT!r}, got {values['format']!r}")
    marks = {}
    for row in values["marks"]:
        clip_id, verdict, score = row["clip_id"], row["verdict"], row.get("score")
        if not isinstance(clip_id, str) or not isinstance(score, str | None):
            raise TypeError("expected clip_id and score to be strings")
        if verdict not in get_args(Verdict):
            raise ValueError(f"expected one of {', '.join(get_args(Verdict))}, got {verdict!r}")
        marks[clip_id] = Mark(clip_id=clip_id, verdict=verdict, score=score)
    fingerprint = values.get("dataset_fingerprint")
    if not isinstance(fingerprint, str | None):
        raise TypeError("expected dataset_fingerprint to be a string")
    return Marks(marks=tuple(marks.values()), dataset_fingerprint=fingerprint)
