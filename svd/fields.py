"""Configurations from and to JSON, with an error that names the nearest known field."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Self, cast, get_args, get_origin, get_type_hints

_MAX_JSON_BYTES = 4 << 20
_MAX_LEVELS = 16
_MAX_TEXT = 64


class Fields:
    """What every configuration here can; a base of frozen dataclasses."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` wrote. Raises ValueError, with the nearest name, for an unknown field."""
        known = [field.name for field in fields(cast("Any", cls))]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown field {name!r} of {cls.__name__}{nearest(name, known)}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """All fields, fit for JSON."""
        values = asdict(cast("Any", self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


class Shape(Fields):
    """A base of configurations that say how large a network is. They come from files, so every value has to be of its
    type and within its bounds before anything is built: a billion layers cost time and memory on the meta device, too.
    """

    MOST: ClassVar[Mapping[str, int]] = {}
    """Upper bounds of whole numbers, where it is not 65,536; the lower one is 1."""

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is tuple:
                if not isinstance(value, tuple) or len(value) > _MAX_LEVELS:
                    raise ValueError(f"{name}: expected a list of at most {_MAX_LEVELS} values, got {_shown(value)}")
                for each in value:
                    self._check(name, get_args(kind)[0], each)
            else:
                self._check(name, kind, value)

    def _check(self, name: str, kind: type, value: Any) -> None:
        most = self.MOST.get(name, 1 << 16)
        if kind is bool:
            fits, wanted = isinstance(value, bool), "true or false"
        elif kind is str:
            fits, wanted = isinstance(value, str) and len(value) <= _MAX_TEXT, "a short text"
        elif kind is int:
            fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
            wanted = f"a whole number from 1 to {most:,}"
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fits, wanted = number and math.isfinite(value) and 0 < value <= 1e6, "a number above 0"
        if not fits:
            raise ValueError(f"{name}: expected {wanted}, got {_shown(value)}")


def _kinds(cls: Any) -> dict[str, Any]:
    """Field name to type; strings of annotations are resolved."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError; ValueError for another content or more than 4 MiB."""
    with path.open("rb") as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    return parse_object(content, str(path))


def parse_object(content: str | bytes, origin: str) -> dict[str, Any]:
    """The object in a JSON text. Raises ValueError, which names `origin`."""
    if len(content) > _MAX_JSON_BYTES:
        raise ValueError(f"{origin} has more than {_MAX_JSON_BYTES:,} bytes, expected a small JSON object")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin} is not JSON: {error or type(error).__name__}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{origin} should hold an object, it holds a {type(values).__name__}")
    return values


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to `name` as the end of an error message; all names where none is close."""
    known = list(known)
    matches = get_close_matches(name, known, n=1)
    return f": did you mean {matches[0]!r}?" if matches else f": known are {', '.join(known)}"
