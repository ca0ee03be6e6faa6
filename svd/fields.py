"""Configurations from and to JSON, with an error that names the nearest known field."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any, Self, cast


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


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to `name` as the end of an error message; all names where none is close."""
    known = list(known)
    matches = get_close_matches(name, known, n=1)
    return f": did you mean {matches[0]!r}?" if matches else f": known are {', '.join(known)}"
