"""dataset.json: the format of a dataset, its configuration, and the columns of its tables."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from clipmill.errors import UserError
from curation.dataset.schemas import SCHEMAS

FORMAT_VERSION = 3
"""Raised when a reader of the older format would misread the folder. All parts of a table have the same columns."""


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """What dataset.json says of a new dataset with this configuration (any JSON values)."""
    return {
        "format": "clipmill dataset",
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(config),
        "config": json.loads(_canonical(config)),
        "columns": _columns(),
    }


def check_format(description: Mapping[str, Any], url: str) -> None:
    """Raise UserError where a dataset has another format than this code reads."""
    version = description["format_version"]
    if version < FORMAT_VERSION:
        raise UserError(
            f"{url} has dataset format {version}, this clipmill reads format {FORMAT_VERSION}: curate its sources "
            "again, into a new folder."
        )
    if version > FORMAT_VERSION:
        raise UserError(f"{url} has dataset format {version}, this clipmill reads format {FORMAT_VERSION}: upgrade it.")


def check_same(description: Mapping[str, Any], config: Mapping[str, Any], url: str) -> None:
    """Raise UserError, with the difference key by key, where a dataset has other columns or another configuration."""
    if description.get("columns") != _columns():
        raise UserError(
            f"{url} was made by a release with other columns:\n"
            + _listed(differences(description.get("columns") or {}, _columns()))
            + "\nGive a new --out, or go on with that release."
        )
    wanted = json.loads(_canonical(config))
    if description["fingerprint"] != fingerprint(wanted):
        raise UserError(
            f"{url} was made with another configuration:\n"
            + _listed(differences(description["config"], wanted))
            + "\nClips of two configurations do not mix: give a new --out, or the old configuration."
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


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per key whose value differs: `a.b: was 1, now 2`. Nested keys are joined by dots."""
    old, new = dict(_leaves(was)), dict(_leaves(now))
    return [
        f"{key}: was {_shown(old, key)}, now {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if _shown(old, key) != _shown(new, key)
    ]


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _columns() -> dict[str, dict[str, str]]:
    return {name: {field.name: str(field.type) for field in schema} for name, schema in SCHEMAS.items()}


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key], ensure_ascii=False) if key in leaves else "absent"
