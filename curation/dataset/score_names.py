"""Names that a scorer may take: none of clipmill's, of the dataset's tables, or of another score."""

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from clipmill.errors import UserError
from curation.dataset.schemas import CLIPS, PREVIEWS, SOURCES
from curation.dataset.tables import Dataset
from curation.scores.columns import CAPTIONS, SCORE_COLUMNS, SCORES

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_OTHER_NAMES = {
    "cluster",
    "duplicates",
    "likeness",
    "embedding",
    "motion",
    "clip",
    "clip_embedder",
    "coca",
    "video",
    "merged",
}
"""Names of tables, scores and models that are not scorers."""
_TABLE_COLUMNS = {*CLIPS.names, *SOURCES.names, *PREVIEWS.names, "version", "weights_digest"}


def check_names(
    dataset: Dataset, root: str, columns: Sequence[pa.Field], beside: Mapping[str, Sequence[pa.Field]]
) -> None:
    """Raise UserError if a scorer or captioner takes a name that clipmill, the dataset or another of them has.

    `root`: scores/NAME or captions/NAME. `beside`: the same of others in the run -> their columns.
    """
    folder, _, name = root.partition("/")
    if not _NAME.fullmatch(name):
        raise UserError(f"expected a scorer's name of lower-case letters, digits and '_', got {name!r}")
    of_clipmill = _OTHER_NAMES - ({"coca", "video", "merged"} if folder == CAPTIONS else set())
    if name in dataset.score_names() or name in of_clipmill:
        raise UserError(
            f"the name {name!r} is taken by a table of {dataset.url} or by a model: give the scorer another one"
        )
    owners = _owners(dataset, beside, root)
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


def _owners(dataset: Dataset, beside: Mapping[str, Sequence[pa.Field]], root: str) -> dict[str, str]:
    """Name of a score or captioner, or of its column -> the one it belongs to, without those of `root`."""
    names = {f"{SCORES}/{own}": {each.name for each in of_own} for own, of_own in SCORE_COLUMNS.items()}
    names |= {other: {each.name for each in of_other} for other, of_other in beside.items()}
    for other in dataset.versioned():
        for recorded in dataset.begun_versions(other):
            names[other] = names.get(other, set()) | recorded.made_with.columns.keys()
    short = {other: other.partition("/")[2] for other in names if other != root}
    return {taken: name for other, name in short.items() for taken in (name, *names[other])}
