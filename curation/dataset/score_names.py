"""Names that a scorer may take: none of clipmill's, of the dataset's tables, or of another score."""

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from clipmill.errors import UserError
from curation.dataset.schemas import CLIPS, PREVIEWS, SOURCES
from curation.dataset.tables import Dataset
from curation.scores.columns import SCORE_COLUMNS

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_OTHER_NAMES = {"duplicates", "embedding", "motion", "clip", "clip_embedder", "coca", "video", "merged"}
"""Names of tables, scores and models that are not scorers."""
_TABLE_COLUMNS = {*CLIPS.names, *SOURCES.names, *PREVIEWS.names, "version", "weights_digest"}


def check_names(
    dataset: Dataset, name: str, columns: Sequence[pa.Field], beside: Mapping[str, Sequence[pa.Field]]
) -> None:
    """Raise UserError if a scorer takes a name that clipmill, the dataset or another of its scores has.

    `beside`: scorer -> columns of further scorers of the same run.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"expected a scorer's name of lower-case letters, digits and '_', got {name!r}")
    if name in dataset.score_names() or name in _OTHER_NAMES:
        raise UserError(
            f"the name {name!r} is taken by a table of {dataset.url} or by a model: give the scorer another one"
        )
    owners = _owners(dataset, {other: of_other for other, of_other in beside.items() if other != name}, name)
    if name in owners:
        raise UserError(f"the name {name!r} is taken by the score {owners[name]}: give the scorer another one")
    for each in columns:
        taken = each.name
        if not _NAME.fullmatch(taken):
            raise UserError(f"scorer {name}: expected a column of lower-case letters, digits and '_', got {taken!r}")
        if taken in owners:
            raise UserError(f"scorer {name}: the column {taken!r} belongs to the score {owners[taken]}; rename it")
        if taken in _TABLE_COLUMNS and name not in SCORE_COLUMNS:
            raise UserError(f"scorer {name}: the column {taken!r} is one of the dataset's own; rename it")


def _owners(dataset: Dataset, beside: Mapping[str, Sequence[pa.Field]], name: str) -> dict[str, str]:
    """Name of a score or its column -> the score it belongs to, without those of `name`."""
    names = {own: {each.name for each in of_own} for own, of_own in SCORE_COLUMNS.items()}
    names |= {other: {each.name for each in of_other} for other, of_other in beside.items()}
    for other in dataset.versioned_scores():
        for recorded in dataset.begun_versions(other):
            names[other] = names.get(other, set()) | recorded.made_with.columns.keys()
    return {taken: other for other in names if other != name for taken in (other, *names[other])}
