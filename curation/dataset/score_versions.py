"""Versions of the scores of a dataset: what made each, which table holds it, and which one counts.

    scores/NAME/versions.json      what made each version
    scores/NAME/vN/PART.parquet    its rows: those of the clips in clips/PART.parquet, as far as they are scored
    captions/NAME/...              the same of a captioner

Clipmill's own scores start as columns of the clips table, which is their version 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
from pydantic import TypeAdapter

from clipmill import storage
from clipmill.columns import column, with_values
from curation.scores.columns import SCORE_COLUMNS, error_kind_column

VERSIONS_FILE = "versions.json"


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
    captions: dict[str, int] = field(default_factory=dict)
    """Captioner -> version of the captions that it was computed from, of a scorer that needs captions."""

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


def read_versions(fs: fsspec.AbstractFileSystem, path: str) -> list[RecordedVersion]:
    """The versions in a `versions.json`, oldest first; none if it is missing. Raises UserError if it is damaged."""
    return sorted(storage.read_json_if_exists(fs, path, _parsed) or [], key=lambda recorded: recorded.version)


def write_versions(fs: fsspec.AbstractFileSystem, path: str, versions: Sequence[RecordedVersion]) -> None:
    """Replace a `versions.json`. Raises UserError if that fails."""
    storage.write_json(fs, path, {"versions": [asdict(recorded) for recorded in versions]})


def scores_of_clips(description: Mapping[str, Any]) -> list[str]:
    """Clipmill's own scores that the clips table of a dataset holds, as dataset.json describes it."""
    left_out = description.get("config", {}).get("without") or ()
    return [name for name in SCORE_COLUMNS if name not in left_out]


def counted_version(versions: Iterable[RecordedVersion], *, in_clips: bool) -> int | None:
    """The version that a name without one stands for: the newest that is finished. None without any."""
    listed = list(versions)
    finished = [recorded.version for recorded in listed if recorded.finished] + [1] * in_clips
    return max(finished or [recorded.version for recorded in listed], default=None)


def table_of(root: str, version: int) -> str:
    """The table of a version of `root`, such as scores/NAME."""
    return f"{root}/v{version}"


def score_schema(name: str, columns: Iterable[pa.Field], *, sees_captions: bool = False) -> pa.Schema:
    """The table of a score: clip_id, its columns, why they are null, and what made them."""
    error = f"{name}_error"
    seen = column(f"{name}_captions_seen", pa.int32(), "captions with text that the clip had when it was scored")
    return pa.schema(
        [
            column("clip_id", pa.string(), "the clip"),
            *(field for field in columns if field.name != error),
            column(error, pa.string(), f"error message if {name} is null"),
            error_kind_column(name),
            *([seen] if sees_captions else []),
            column("version", pa.int32(), "version of the score"),
            column("weights_digest", pa.string(), "digest of the scorer's weights; null without weights"),
        ]
    )


def stamped(table: pa.Table, version: int, weights_digest: str | None) -> pa.Table:
    """The rows of a score with what made them."""
    for name, value in {"version": version, "weights_digest": weights_digest}.items():
        table = with_values(table, name, [value] * table.num_rows)
    return table


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
