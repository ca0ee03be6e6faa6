"""The base of every configuration: frozen, keyword-only, and unknown keys fail with the nearest known one."""

import difflib
from collections.abc import Hashable, Mapping
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from curation import storage
from curation.errors import UserError


class Config(BaseModel):
    """Frozen settings, checked when made. An unknown key is an error that names the nearest known key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _suggest_known_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise UserError(unknown_name("configuration key", str(key), list(cls.model_fields)))
        return values

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, origin: str) -> Self:
        """Check plain values. Raises UserError with one line per mistake, each led by its place in `origin`."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            lines = [
                f"{'.'.join(str(part) for part in mistake['loc']) or cls.__name__}: "
                + mistake["msg"].removeprefix("Value error, ")
                for mistake in error.errors()
            ]
            raise UserError(f"{origin}: " + "\n  ".join(lines)) from error

    @classmethod
    def from_file(cls, address: str) -> Self:
        """Settings from a YAML file (any address that fsspec knows), over the defaults. Raises UserError."""
        return cls.from_values(read_yaml(address), origin=address)


def read_yaml(address: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError: not there, no YAML, no mapping, the same key twice."""
    fs, path = storage.filesystem(address)
    try:
        values = yaml.load(storage.read_bytes(fs, path).decode(), Loader=_UniqueKeys)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {address}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{address} is no valid YAML: {error}") from error
    if not isinstance(values, dict | None):
        raise UserError(f"{address} should hold keys and values, came {type(values).__name__}")
    return values or {}


def unknown_name(what: str, came: str, known: list[str]) -> str:
    """The sentence for a name that is not known: what came, the nearest known one, and all that are."""
    near = difflib.get_close_matches(came, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {came!r}.{hint} Known: {', '.join(sorted(known))}."


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML in which the same key twice is a mistake, not a silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key has to be text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
