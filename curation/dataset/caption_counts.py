"""Counts of captions: of those supplied with the videos, and of those of captioners, with their cost."""

from collections import Counter
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from curation.dataset.joined import VERSIONS, view_of
from curation.dataset.score_counts import clips_and_failed
from curation.dataset.sql import quoted
from curation.dataset.tables import Dataset
from curation.scores.columns import CAPTIONS, FAILED

_LEAVES = [f"captions.list.element.{name}" for name in ("source", "error_kind")]
"""No text is read."""


@dataclass(frozen=True, kw_only=True)
class CaptionCount:
    """A version of a captioner."""

    captioner: str
    version: int
    counted: bool
    """Whether it is the version that `captions` and shards contain."""
    clips: int
    """Clips with a row in this version."""
    failed: int
    tokens: int
    """Tokens of requests and answers, including failed ones; 0 if the captioner does not count tokens."""
    price: float | None
    """Of the tokens, in the currency of the settings; None without prices."""


def caption_counts(connection: duckdb.DuckDBPyConnection) -> tuple[CaptionCount, ...]:
    """Every version of every captioner, oldest first."""
    versions = connection.execute(
        f"SELECT scorer, version, view, counted FROM {VERSIONS} WHERE starts_with(view, '{CAPTIONS}_') ORDER BY 1, 2"
    ).fetchall()
    counts = []
    for captioner, version, view, counted in versions:
        clips, failed = clips_and_failed(connection, captioner, view)
        tokens, price = spent_on(connection, captioner, version)
        counts.append(
            CaptionCount(
                captioner=captioner,
                version=version,
                counted=counted,
                clips=clips,
                failed=failed,
                tokens=tokens,
                price=price,
            )
        )
    return tuple(counts)


def spent_on(connection: duckdb.DuckDBPyConnection, captioner: str, version: int) -> tuple[int, float | None]:
    """Tokens of a version of a captioner, and their price; (0, None) of one that counts none or has no rows."""
    view, prefix = view_of(f"{CAPTIONS}/{captioner}", version), f"{captioner}_"
    names = connection.execute("SELECT column_name FROM duckdb_columns() WHERE table_name = ?", [view]).fetchall()
    if (f"{prefix}price",) not in names:
        return 0, None
    tokens = " + ".join(f"coalesce({quoted(f'{prefix}{name}_tokens')}, 0)" for name in ("prompt", "completion"))
    [(count, price)] = connection.execute(
        f"SELECT coalesce(sum({tokens}), 0)::BIGINT, sum({quoted(f'{prefix}price')}) FROM {quoted(view)}"
    ).fetchall()
    return count, price


@dataclass(frozen=True, kw_only=True)
class CaptionSavings:
    """What captioning some clips rather than all of them saves."""

    clips: int
    """Clips that are left out."""
    captioner: str | None = None
    """The captioner with the most tokens per clip, by whose captions the rest is estimated; None if none counts any."""
    tokens: int = 0
    price: float | None = None


def caption_savings(connection: duckdb.DuckDBPyConnection, left_out: int) -> CaptionSavings:
    """Estimate them from the captions that are there."""
    counted = [count for count in caption_counts(connection) if count.counted and count.clips and count.tokens]
    if not counted:
        return CaptionSavings(clips=left_out)
    most = max(counted, key=lambda count: count.tokens / count.clips)
    per_clip = left_out / most.clips
    price = None if most.price is None else most.price * per_clip
    return CaptionSavings(clips=left_out, captioner=most.captioner, tokens=round(most.tokens * per_clip), price=price)


def count_failed_captions(dataset: Dataset) -> dict[str, int]:
    """Number of unreadable supplied captions, by the source of the captions."""
    counts: Counter[str] = Counter()
    for part in dataset.parts("sources"):
        captions = dataset.read_part("sources", part, _LEAVES)["captions"].combine_chunks()
        failed = pc.fill_null(pc.equal(_flat(captions, "error_kind"), FAILED), False)
        counts.update(_flat(captions, "source").filter(failed).to_pylist())
    return dict(sorted(counts.items()))


def _flat(captions: pa.ListArray, name: str) -> pa.Array:
    """A field of every caption, source after source."""
    return pc.struct_field(pc.list_flatten(captions), name)
