"""Captions as JSON: the user's schema goes with the request, answers are checked against it, fields become columns."""

import json
import re
from collections.abc import Mapping
from typing import Any

import jsonschema
import pyarrow as pa
from referencing import Registry

from clipmill.columns import column
from clipmill.errors import UserError
from curation.captioners.base import NoCaption, without_reasoning
from curation.inputs.caption import clean

_KINDS = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)
_LONGEST_REASON = 150


class Structure:
    """A JSON schema of an object. Its property `caption` is the caption, the others are columns.

    Strings, numbers, booleans and lists of them keep their type; anything else is kept as JSON text. Raises UserError
    for an invalid schema, or one without a caption.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except (jsonschema.SchemaError, RecursionError) as error:
            reason = error.message if isinstance(error, jsonschema.SchemaError) else "nested too deeply"
            raise UserError(f"json_schema is not a JSON schema: {reason}") from error
        properties = schema.get("properties")
        if schema.get("type") != "object" or not isinstance(properties, Mapping):
            raise UserError("json_schema: expected `type: object` with `properties`")
        if _kind(properties.get("caption")) != pa.string() or "caption" not in schema.get("required", ()):
            raise UserError("json_schema: expected a required property `caption` of type string, which is the caption")
        if unfit := [name for name in properties if not _NAME.fullmatch(name)]:
            raise UserError(f"json_schema: expected properties of lower-case letters, digits and '_', got {unfit[0]!r}")
        self.schema = dict(schema)
        self.fields = tuple(
            column(name, _kind(value) or pa.string(), str(_description(value) or name))
            for name, value in properties.items()
            if name != "caption"
        )
        # References are resolved inside the schema alone: a registry without a way to retrieve others.
        self._validator = jsonschema.Draft202012Validator(self.schema, registry=Registry())

    def request(self) -> dict[str, Any]:
        """The field `response_format` of a request."""
        named = {"name": "clip", "schema": self.schema, "strict": _is_closed(self.schema)}
        return {"type": "json_schema", "json_schema": named}

    def instruction(self) -> str:
        """For endpoints that ignore `response_format`."""
        return f"Give the answer as a JSON object that matches this schema: {json.dumps(self.schema)}"

    def read(self, answer: str, *, cut: bool = False) -> tuple[str, dict[str, Any]]:
        """The caption and the fields in an answer. Raises NoCaption if it does not match the schema."""
        text = without_reasoning(answer)
        fenced = _FENCE.fullmatch(text)
        try:
            values = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            reason = ": max_tokens was reached before its end" if cut else ""
            raise NoCaption(f"the answer is not JSON{reason}") from error
        try:
            problem = next(self._validator.iter_errors(values), None)
        except Exception as error:  # of references and patterns in the schema
            raise NoCaption(f"the answer cannot be checked: {type(error).__name__}: {error}") from error
        if problem is not None:
            where = ".".join(map(str, problem.absolute_path)) or "the answer"
            raise NoCaption(f"{where} does not match the schema: {problem.message[:_LONGEST_REASON]}")
        caption = clean(values["caption"])
        if caption is None:
            raise NoCaption("the caption is empty")
        return caption, {each.name: _stored(values.get(each.name), each.type) for each in self.fields}


def _kind(schema: Any) -> pa.DataType | None:
    """The type of a column; None for what is kept as JSON."""
    if not isinstance(schema, Mapping):
        return None
    given = schema.get("type")
    types = [each for each in (given if isinstance(given, list) else [given]) if each != "null"]
    if types == ["array"]:
        items = _kind(schema.get("items"))
        return pa.list_(items) if items in _KINDS.values() else None
    if types == [None] and schema.get("enum") and all(isinstance(each, str) for each in schema["enum"]):
        return pa.string()
    return _KINDS.get(str(types[0])) if len(types) == 1 else None


def _stored(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list) and pa.types.is_list(kind):
        return [_stored(each, kind.value_type) for each in value]
    return json.dumps(value, ensure_ascii=False) if value is not None and pa.types.is_string(kind) else value


def _description(schema: Any) -> Any:
    return schema.get("description") if isinstance(schema, Mapping) else None


def _is_closed(schema: Any) -> bool:
    """Whether every object names all its properties as required and allows no others: as OpenAI's strict mode
    requires."""
    if isinstance(schema, list):
        return all(map(_is_closed, schema))
    if not isinstance(schema, Mapping):
        return True
    if schema.get("type") == "object":
        required, properties = schema.get("required", ()), schema.get("properties", {})
        if schema.get("additionalProperties") is not False or set(required) != set(properties):
            return False
    return all(map(_is_closed, schema.values()))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
