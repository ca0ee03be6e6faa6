"""dataset.json: the format of a dataset, its configuration, and the columns of its tables."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from clipmill.errors import UserError
from clipmill.resume import check_same, started_with
from curation.dataset.schemas import SCHEMAS

FORMAT_VERSION = 3
"""Raised when a reader of the older format would misread the folder. All parts of a table have the same columns."""


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """What dataset.json says of a new dataset with this configuration (any JSON values)."""
    values = json.loads(_canonical(config))
    return started_with("dataset", FORMAT_VERSION, values, fingerprint=fingerprint(config), columns=_columns())


def check_format(description: Mapping[str, Any], url: str) -> None:
    """Raise UserError where a dataset has another format than this code reads."""
    version = description["format_version"]
    if version < FORMAT_VERSION:
        raise UserError(
            f"{url} has dataset format {version}, this clipmill reads format {FORMAT_VERSION}: re-curate its sources "
            "into a new folder."
        )
    if version > FORMAT_VERSION:
        raise UserError(
            f"{url} has dataset format {version}, this clipmill reads format {FORMAT_VERSION}: upgrade clipmill."
        )


def check_config(description: Mapping[str, Any], config: Mapping[str, Any], url: str) -> None:
    """Raise UserError, with what differs, where a dataset has other columns or another configuration."""
    check_same(
        url,
        "a dataset",
        {"columns": description.get("columns") or {}, "config": description["config"]},
        {"columns": _columns(), "config": json.loads(_canonical(config))},
    )


def checked_description(values: dict[str, Any]) -> dict[str, Any]:
    kinds = {"format_version": int, "fingerprint": str, "config": dict}
    for key, kind in (kinds | ({"columns": dict} if "columns" in values else {})).items():
        if not isinstance(values[key], kind):
            raise TypeError(f"expected {key} to be of type {kind.__name__}, got {type(values[key]).__name__}")
    return values


def fingerprint(config: Mapping[str, Any]) -> str:
    """sha256, in hex, of a configuration's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(_canonical(config).encode()).hexdigest()


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _columns() -> dict[str, dict[str, str]]:
    return {name: {field.name: str(field.type) for field in schema} for name, schema in SCHEMAS.items()}
