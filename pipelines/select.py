"""`select`: choose clips by rules, with built-in presets."""

from pathlib import Path

from clipmill.errors import UserError
from curation.dataset.joined import joined_columns, joined_query
from curation.dataset.tables import Dataset
from curation.dedup.duplicates import last_source
from curation.dedup.hashes import HASH
from curation.selection.difference import Difference, difference
from curation.selection.marks import load_marks
from curation.selection.rules import Rules, load_preset, load_rules
from curation.selection.saved import Selection
from curation.selection.select import select_clips

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "svd-paper"


def select(
    dataset: str,
    rules: str | Rules = DEFAULT_PRESET,
    *,
    name: str | None = None,
    marks: str | None = None,
    allow_missing: bool = False,
    replace: bool = False,
    dry_run: bool = False,
) -> Selection:
    """Select clips of a dataset by rules: a preset's name, a .yaml file, or `Rules`. Written under `name`.

    `marks` is a file exported from the report's page.
    Raises UserError for an unknown preset, column or key, for a threshold out of range, and for a name that holds a
    selection with different rules or clips, unless `replace`. `dry_run` writes nothing. An empty selection is written
    and returned: check its `empty`, and `starved` for rules that lacked scores.
    """
    opened, asked = _opened(dataset, rules)
    verdicts = load_marks(marks) if marks else None
    return select_clips(
        opened, asked, name=name, marks=verdicts, allow_missing=allow_missing, replace=replace, dry_run=dry_run
    )


def compare(
    dataset: str,
    rules: str | Rules,
    other: str,
    *,
    marks: str | None = None,
    allow_missing: bool = False,
) -> Difference:
    """Compare what rules would select with an existing selection: clips that come and go, and the rules that decide.

    Arguments and errors as in `select`. Writes nothing.
    """
    opened, asked = _opened(dataset, rules)
    verdicts = load_marks(marks) if marks else None
    return difference(opened, asked, other, marks=verdicts, allow_missing=allow_missing)


def _opened(dataset: str, rules: str | Rules) -> tuple[Dataset, Rules]:
    if isinstance(rules, str):
        rules = load_rules(rules) if rules.endswith((".yaml", ".yml")) else load_preset(rules, PRESETS)
    opened = Dataset(dataset).open()
    if "duplicate_rank" in rules.rules:
        _assure_compared(opened)
    return opened, rules


def _assure_compared(dataset: Dataset) -> None:
    """Raise UserError if clips were added after the last duplicate search: they have no rank yet."""
    with dataset.connect() as connection:
        if "duplicate_rank" not in joined_columns(connection):
            return  # the rule itself reports the missing column
        by_hash = last_source(dataset) == HASH and HASH in joined_columns(connection)
        column, compared = (
            (HASH, f"list_count({HASH}) > 0") if by_hash else ("embedding_error", "embedding_error IS NULL")
        )
        rows = joined_query(connection, [column, "duplicate_rank"])
        query = f"SELECT count(*) FROM ({rows}) WHERE {compared} AND duplicate_rank IS NULL"
        (late,) = connection.execute(query).fetchone() or (0,)
    if late:
        raise UserError(
            f"{late:,} clips were added after the last duplicate search: run `clipmill duplicates {dataset.url}` first"
        )
