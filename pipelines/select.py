"""`select`: choose clips by rules, with built-in presets."""

from pathlib import Path

from clipmill.errors import UserError
from curation.dataset.joined import joined_columns, joined_query
from curation.dataset.tables import Dataset
from curation.dedup.duplicates import last_source
from curation.dedup.hashes import HASH
from curation.selection.difference import Difference, difference
from curation.selection.groups import columns_of_groups
from curation.selection.marks import load_marks
from curation.selection.rules import Rules, load_preset, load_rules
from curation.selection.saved import Selection
from curation.selection.select import select_clips
from pipelines.config import CurateConfig

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "svd-paper"


def select(
    dataset: str,
    rules: str | Rules = DEFAULT_PRESET,
    *,
    name: str | None = None,
    marks: str | None = None,
    clip_config: CurateConfig | None = None,
    allow_missing: bool = False,
    replace: bool = False,
    dry_run: bool = False,
) -> Selection:
    """Select clips of a dataset by rules: a preset's name, a .yaml file, or `Rules`. Written under `name`.

    `marks` is a file exported from the report's page. `clip_config` says where the CLIP model is that embeds the texts
    and pictures of `like`, if not where the dataset says.
    Raises UserError for an unknown preset, column or key, for a threshold out of range, and for a name that holds a
    selection with different rules or clips, unless `replace`. `dry_run` writes nothing. An empty selection is written
    and returned: check its `empty`, and `starved` for rules that lacked scores.
    """
    opened, asked = _opened(dataset, rules, clip_config)
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
    clip_config: CurateConfig | None = None,
    allow_missing: bool = False,
) -> Difference:
    """Compare what rules would select with an existing selection: clips that come and go, and the rules that decide.

    Arguments and errors as in `select`. Writes nothing.
    """
    opened, asked = _opened(dataset, rules, clip_config)
    verdicts = load_marks(marks) if marks else None
    return difference(opened, asked, other, marks=verdicts, allow_missing=allow_missing)


def _opened(dataset: str, rules: str | Rules, clip_config: CurateConfig | None) -> tuple[Dataset, Rules]:
    if isinstance(rules, str):
        rules = load_rules(rules) if rules.endswith((".yaml", ".yml")) else load_preset(rules, PRESETS)
    opened = Dataset(dataset).open()
    if "duplicate_rank" in rules.rules:
        _assure_covered(opened, "duplicate_rank", "duplicate search", "duplicates")
    if "cluster" in columns_of_groups(rules).values():
        _assure_covered(opened, "cluster", "clustering", "cluster")
    if any(like.embedding is None and like.clip is None for like in rules.like):
        from pipelines.queries import with_embeddings  # loads PyTorch

        rules = with_embeddings(opened, rules, clip_config)
    return opened, rules


def _assure_covered(dataset: Dataset, column: str, what: str, command: str) -> None:
    """Raise UserError if clips were added after a command last ran: they have no value in its column yet."""
    with dataset.connect() as connection:
        known = joined_columns(connection)
        if column not in known:
            return  # the rule itself reports the missing column
        by_hash = column == "duplicate_rank" and last_source(dataset) == HASH and HASH in known
        read, compared = (
            (HASH, f"list_count({HASH}) > 0") if by_hash else ("embedding_error", "embedding_error IS NULL")
        )
        rows = joined_query(connection, [read, column])
        query = f"SELECT count(*) FROM ({rows}) WHERE {compared} AND {column} IS NULL"
        (late,) = connection.execute(query).fetchone() or (0,)
    if late:
        raise UserError(
            f"{late:,} clips were added after the last {what}: run `clipmill {command} {dataset.url}` first"
        )
