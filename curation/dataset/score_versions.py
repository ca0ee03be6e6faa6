"""Versions of the scores of a dataset: what made each, which table holds it, and which one counts.

    scores/NAME/versions.json      what made each version
    scores/NAME/vN/PART.parquet    its rows: those of the clips in clips/PART.parquet, as far as they are scored

Clipmill's own scores start as columns of the clips table, which is their version 1.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import TypeAdapter

from clipmill import storage
from clipmill.columns import column
from clipmill.errors import UserError
from curation.dataset.joined import SCORES
from curation.dataset.schemas import CLIPS, PREVIEWS, SOURCES
from curation.scores.columns import SCORE_COLUMNS, error_kind_column

if TYPE_CHECKING:
    from curation.dataset.tables import Dataset

VERSIONS_FILE = "versions.json"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_OTHER_NAMES = {"duplicates", "embedding", "motion", "clip", "clip_embedder", "coca", "video", "merged"}
"""Names of tables, scores and models that are not scorers."""
_TABLE_COLUMNS = {*CLIPS.names, *SOURCES.names, *PREVIEWS.names, "version", "weights_digest"}


@dataclass(frozen=True, kw_only=True)
class ScoreVersion:
    """What made a version of a score; two runs for which this is equal write the same one."""

    scorer_version: int
    """That the scorer's class declares."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Without those that do not affect the values."""
    weights: dict[str, str] = field(default_factory=dict)
    """Model -> digest of its weights."""
    columns: dict[str, str] = field(default_factory=dict)
    """Name -> type."""

    def differences(self, other: "ScoreVersion") -> list[str]:
        """What `other` has otherwise, one per entry: `settings.size: was 3, now 4`."""
        before, now = dict(_leaves(asdict(self))), dict(_leaves(asdict(other)))
        names = sorted(before.keys() | now.keys())
        return [
            f"{name}: was {before.get(name, 'absent')}, now {now.get(name, 'absent')}"
            for name in names
            if before.get(name) != now.get(name)
        ]


@dataclass(frozen=True, kw_only=True)
class RecordedVersion:
    """A version in `versions.json`."""

    version: int
    made_with: ScoreVersion
    target: str
    """module:Class of the scorer."""
    source_sha256: str | None = None
    """Of the file of a scorer that is not installed."""
    created: str = ""
    finished: bool = False
    """Whether a run that writes it has come to its end."""


_RECORDED = TypeAdapter(list[RecordedVersion])


def recorded_versions(dataset: "Dataset", scorer: str) -> list[RecordedVersion]:
    """The versions in `scores/SCORER`, oldest first. Raises UserError if the record is damaged."""
    path = dataset.file(SCORES, scorer, VERSIONS_FILE)
    versions = storage.read_json_if_exists(dataset.fs, path, _parsed) or []
    return sorted(versions, key=lambda recorded: recorded.version)


def record_versions(dataset: "Dataset", scorer: str, versions: Sequence[RecordedVersion]) -> None:
    """Replace the record. Call it only when no other run writes into the dataset."""
    content = {"versions": [asdict(recorded) for recorded in versions]}
    storage.write_json(dataset.fs, dataset.file(SCORES, scorer, VERSIONS_FILE), content)


def scores_of_clips(description: Mapping[str, Any]) -> list[str]:
    """Clipmill's own scores that the clips table of a dataset holds, as dataset.json describes it."""
    left_out = description.get("config", {}).get("without") or ()
    return [name for name in SCORE_COLUMNS if name not in left_out]


def counted_version(versions: Iterable[RecordedVersion], *, in_clips: bool) -> int | None:
    """The version that a name without one stands for: the newest that is finished. None without any."""
    listed = list(versions)
    finished = [recorded.version for recorded in listed if recorded.finished] + [1] * in_clips
    return max(finished or [recorded.version for recorded in listed], default=None)


def table_of(scorer: str, version: int) -> str:
    """The table of a version outside the clips table."""
    return f"{SCORES}/{scorer}/v{version}"


def score_schema(name: str, columns: Iterable[pa.Field]) -> pa.Schema:
    """The table of a score: clip_id, its columns, why they are null, and what made them."""
    error = f"{name}_error"
    return pa.schema(
        [
            column("clip_id", pa.string(), "the clip"),
            *(field for field in columns if field.name != error),
            column(error, pa.string(), f"error message if {name} is null"),
            error_kind_column(name),
            column("version", pa.int32(), "version of the score"),
            column("weights_digest", pa.string(), "digest of the scorer's weights; null without weights"),
        ]
    )


def stamped(table: pa.Table, version: int, weights_digest: str | None) -> pa.Table:
    """The rows of a score with what made them."""
    for name, value in {"version": version, "weights_digest": weights_digest}.items():
        place = table.schema.get_field_index(name)
        constant = pa.array([value] * table.num_rows, table.schema.field(name).type)
        table = table.set_column(place, table.schema.field(name), constant)
    return table


def check_names(
    dataset: "Dataset", name: str, columns: Sequence[pa.Field], beside: Mapping[str, Sequence[pa.Field]]
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


def _owners(dataset: "Dataset", beside: Mapping[str, Sequence[pa.Field]], name: str) -> dict[str, str]:
    """Name of a score or its column -> the score it belongs to, without those of `name`."""
    names = {own: {each.name for each in of_own} for own, of_own in SCORE_COLUMNS.items()}
    names |= {other: {each.name for each in of_other} for other, of_other in beside.items()}
    for other in dataset.versioned_scores():
        for recorded in recorded_versions(dataset, other):
            names[other] = names.get(other, set()) | recorded.made_with.columns.keys()
    return {taken: other for other in names if other != name for taken in (other, *names[other])}


def _parsed(content: dict[str, Any]) -> list[RecordedVersion]:
    versions = _RECORDED.validate_python(content["versions"])
    numbers = [recorded.version for recorded in versions]
    if len(set(numbers)) < len(numbers) or min(numbers, default=1) < 1:
        raise ValueError(f"expected distinct versions from 1, got {numbers}")
    return versions


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(value)
