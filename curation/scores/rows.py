"""What a scorer returns, checked: a row per clip with all its columns, or nulls and the reason."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from clipmill.errors import SourceError, UserError, raise_if_stopped
from curation.scores.base import ClipView, Scorer
from curation.scores.columns import FAILED

_LONGEST_ERROR, _LONGEST_VALUE = 500, 60
_UNFIT = (pa.ArrowException, OverflowError, TypeError, ValueError)


def score_columns(scorer: Scorer) -> tuple[str, ...]:
    """The columns of `score_rows`."""
    return (*_values_of(scorer), f"{scorer.name}_error", f"{scorer.name}_error_kind")


def score_rows(scorer: Scorer, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
    """Score clips. A clip whose scoring raises gets nulls and the error, and the others their scores.

    Raises UserError if the scorer raises that, or breaks its contract: another number of rows, or other columns.
    """
    try:
        answer = scorer.score(batch)
    except UserError:
        raise
    except Exception as error:  # whatever the code of a scorer raises
        raise_if_stopped(error)
        if len(batch) > 1:
            return [row for clip in batch for row in score_rows(scorer, [clip])]
        reason = str(error) if isinstance(error, SourceError) else f"{type(error).__name__}: {error}"
        return [failed_row(scorer, reason.rstrip(": "))]
    if not isinstance(answer, Sequence) or isinstance(answer, str):
        raise UserError(f"scorer {scorer.name}: expected a list with a row per clip, got {type(answer).__name__}")
    if len(answer) != len(batch):
        raise UserError(
            f"scorer {scorer.name} returned {len(answer)} rows for {len(batch)} clips: one per clip, in order"
        )
    return _fitted(scorer, [_checked(scorer, row) for row in answer])


def _checked(scorer: Scorer, row: Any) -> dict[str, Any]:
    """The row with every column; values are not checked."""
    if not isinstance(row, Mapping):
        raise UserError(f"scorer {scorer.name}: expected a mapping of column to value, got {type(row).__name__}")
    error, fields = f"{scorer.name}_error", _values_of(scorer)
    if unknown := sorted(map(str, row.keys() - {*fields, error, f"{error}_kind"})):
        raise UserError(
            f"scorer {scorer.name} returned the column {unknown[0]!r}; it declares {', '.join(fields)} (`columns`)"
        )
    if row.get(error) is not None:
        kept = {name: _plain(row[name]) for name in scorer.kept_on_error if name in row}
        return failed_row(scorer, str(row[error])) | kept | {f"{error}_kind": row.get(f"{error}_kind") or FAILED}
    if missing := [name for name in fields if name not in row]:
        raise UserError(f"scorer {scorer.name} returned no {missing[0]!r}, which it declares (`columns`)")
    return {name: _plain(row[name]) for name in fields} | {error: None, f"{error}_kind": None}


def _fitted(scorer: Scorer, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The values as the columns hold them; a row with one that does not fit has failed."""
    for name, field in _values_of(scorer).items():
        try:
            values = pa.array([row[name] for row in rows], field.type).to_pylist()
        except _UNFIT as error:
            if len(rows) > 1:
                return [fitted for row in rows for fitted in _fitted(scorer, [row])]
            reason = str(error).partition("\n")[0]
            value = str(rows[0][name])[:_LONGEST_VALUE]
            kept = {name: rows[0][name] for name in scorer.kept_on_error}
            return [failed_row(scorer, f"column {name} is {field.type}, got {value!r}: {reason}") | kept]
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and PyTorch as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def failed_row(scorer: Scorer, reason: str) -> dict[str, Any]:
    """The row of a clip that could not be scored."""
    error = f"{scorer.name}_error"
    return dict.fromkeys(_values_of(scorer)) | {error: reason[:_LONGEST_ERROR], f"{error}_kind": FAILED}


def _values_of(scorer: Scorer) -> dict[str, pa.Field]:
    return {field.name: field for field in scorer.columns if field.name != f"{scorer.name}_error"}
