"""Parse JSON objects from untrusted files and metadata, at most 4 MiB each."""

import json
from pathlib import Path
from typing import Any

from clipmill.errors import UserError

_MAX_JSON_BYTES = 4 << 20


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises FileNotFoundError; UserError for other content or more than 4 MiB."""
    with path.open("rb") as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    return parse_object(content, str(path))


def parse_object(content: str | bytes, origin: str) -> dict[str, Any]:
    """Parse a JSON object. Raises UserError, which names `origin`."""
    if len(content) > _MAX_JSON_BYTES:
        raise UserError(f"{origin} exceeds {_MAX_JSON_BYTES:,} bytes; expected a small JSON object")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} is not valid JSON: {error or type(error).__name__}") from error
    if not isinstance(values, dict):
        raise UserError(f"{origin} must contain a JSON object, got {type(values).__name__}")
    return values
