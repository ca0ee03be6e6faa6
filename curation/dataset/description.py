"""dataset.json: the format of a dataset, its configuration, and the columns of its tables."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from clipmill.formats import DATASET
from clipmill.resume import check_same
from curation.dataset.schemas import SCHEMAS


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Content of dataset.json for a new dataset with this configuration (any JSON values)."""
    return DATASET.describe(json.loads(_canonical(config)), fingerprint=fingerprint(config), columns=_columns())


def check_config(description: Mapping[str, Any], config: Mapping[str, Any], url: str) -> None:
    """Raise UserError that names the differences if a dataset has other columns or another configuration."""
    check_same(
        url,
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
