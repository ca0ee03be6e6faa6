"""Base of all configurations: frozen, keyword-only; unknown keys fail with the nearest known key."""

import difflib
import re
from collections.abc import Collection, Hashable, Mapping
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from clipmill.addresses import redacted
from clipmill.errors import UserError
from clipmill.text import is_unicode

_MAX_YAML_BYTES = 1 << 20
_MAX_NODES = 100_000
_MAX_DEPTH = 50
_MAX_SHOWN = 100
_MOST_LISTED, _NEAREST = 60, 8
_MAX_MISTAKES = 20
_MERGE_TAG = "tag:yaml.org,2002:merge"


class Config(BaseModel):
    """Frozen settings, validated on construction. An unknown key is an error that names the nearest known key."""

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
        """Validate plain values. Raises UserError with one line per mistake, each prefixed with its path in
        `origin`."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            lines = [_mistake(mistake, cls.__name__) for mistake in error.errors()[:_MAX_MISTAKES]]
            raise UserError(f"{origin}: " + "\n  ".join(lines)) from error

    def replace(self, **values: Any) -> Self:
        """A copy with other values for some fields, checked like a new one. Raises UserError."""
        return type(self).from_values({**dict(self), **values}, origin=type(self).__name__)

    @classmethod
    def from_file(cls, address: str) -> Self:
        """Load settings from a YAML file (any fsspec URL) over the defaults. Raises UserError."""
        return cls.from_values(read_yaml(address), origin=redacted(address))


class StrictConfig(Config):
    """A `Config` that converts no value to another type: 1 is not true and "1" is not 1."""

    model_config = ConfigDict(strict=True)


def _mistake(mistake: ErrorDetails, name: str) -> str:
    """One line: where it is, what was expected and, where pydantic does not say so, what it got."""
    where = ".".join(str(part) for part in mistake["loc"]) or name
    if mistake["type"] in ("value_error", "missing"):
        return f"{where}: {mistake['msg'].removeprefix('Value error, ')}"
    return f"{where}: {mistake['msg']}, got {_shown(mistake['input'], mistake['type'])}"


def _shown(value: object, mistake: str) -> str:
    """A rejected value without secrets: text that a text field rejects may be a key in the wrong place."""
    if isinstance(value, str) and mistake.startswith("string"):
        return f"a string of {len(value)} characters"
    if not isinstance(value, str | int | float | None):
        return f"a {type(value).__name__}"
    got = redacted(repr(value))
    return got if len(got) <= _MAX_SHOWN else f"{got[:_MAX_SHOWN]}..."


def read_yaml(address: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError: file not found, invalid YAML, not a mapping, too deeply nested or
    too large.

    Safe for untrusted files: plain values only, at most 1 MiB, and aliases count as often as they are used.
    """
    from clipmill import storage  # loads fsspec and Arrow, which a configuration does not need

    fs, path = storage.filesystem(address)
    try:
        content = storage.read_limited(fs, path, max_bytes=_MAX_YAML_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"file not found: {storage.shown(fs, path)}") from error
    return parse_yaml(content, origin=storage.shown(fs, path))


def parse_yaml(content: str | bytes, *, origin: str) -> dict[str, Any]:
    """Parse a mapping from YAML text; `origin` names it in errors. Raises UserError like `read_yaml`."""
    values = parse_yaml_value(content, origin=origin)
    if not isinstance(values, dict | None):
        raise UserError(f"{origin}: expected a mapping, got {type(values).__name__}")
    return values or {}


def parse_yaml_value(content: str | bytes, *, origin: str) -> Any:
    """Parse any value from YAML text; as `parse_yaml`."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # ValueError: 2024-99-99, 5,000 digits
        raise UserError(f"{origin} is not valid YAML: {error or type(error).__name__}") from error


def unknown_name(what: str, name: str, known: list[str]) -> str:
    """Message for an unknown name: the name, the nearest known one, and all known ones, of many the nearest."""
    name = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}..."
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = known if len(known) <= _MOST_LISTED else difflib.get_close_matches(name, known, n=_NEAREST, cutoff=0)
    more = f" and {len(known) - len(listed):,} more" if len(listed) < len(known) else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(sorted(listed)) or 'none'}{more}."


def known_name(what: str, name: str, known: Collection[str]) -> str:
    """Resolve a name or an unambiguous prefix against `known`.

    Raises UserError that lists the known names, or the candidates of an ambiguous prefix.
    """
    if name in known:
        return name
    candidates = sorted(candidate for candidate in known if name and candidate.startswith(name))
    if len(candidates) > 1:
        raise UserError(f"ambiguous {what} {name!r}: it could be {', '.join(candidates)}.")
    if not candidates:
        raise UserError(unknown_name(what, name, list(known)))
    return candidates[0]


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML with limits on depth and size; duplicate keys are an error.

    The limits apply with aliases expanded, so that a small file cannot expand to billions of values.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open = 0
        self._sizes: dict[int, tuple[int, int]] = {}
        """Node id -> (number of nodes, depth), aliases expanded."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self._open += 1
        if self._open > _MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {_MAX_DEPTH} levels deep", mark)
        node = super().compose_node(parent, index)
        self._open -= 1
        if node is not None and id(node) not in self._sizes:
            if alias:
                raise yaml.composer.ComposerError(None, None, "an alias refers to a node that contains it", mark)
            self._sizes[id(node)] = self._size(node, mark)
            _check_text(node, mark)
        return node

    def _size(self, node: yaml.Node, mark: yaml.Mark) -> tuple[int, int]:
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in children for part in pair]
        sizes = [self._sizes[id(child)] for child in children]
        text = len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 0
        nodes = 1 + text + sum(size[0] for size in sizes)
        levels = 1 + max((size[1] for size in sizes), default=0)
        if nodes > _MAX_NODES or levels > _MAX_DEPTH:
            bounds = f"{_MAX_NODES:,} values or {_MAX_DEPTH} levels"
            raise yaml.composer.ComposerError(None, None, f"more than {bounds} with its aliases expanded", mark)
        return nodes, levels

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, AttributeError, LookupError, TypeError) as error:
            # `!!timestamp x`, `!!bool x`, `!!int ""`: PyYAML's constructors trust the tag and fail on such values.
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"not a value of type {kind}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE_TAG:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "keys must be strings", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {str(key)[:_MAX_SHOWN]!r}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 requires a dot and a signed exponent in a float, so 1e9, 1E-3 and .5e3 would load as text; 1.2 does not.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+\Z"),
    list("-+.0123456789"),
)


def _check_text(node: yaml.Node, mark: yaml.Mark) -> None:
    """`"\\ud800"` is half of a character, for which UTF-8 has no bytes."""
    if isinstance(node, yaml.ScalarNode) and not is_unicode(node.value):
        raise yaml.composer.ComposerError(None, None, "expected valid Unicode, got half a character", mark)
