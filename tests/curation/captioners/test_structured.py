"""Answers by a JSON schema: what is asked for, what is accepted, and which columns come of it."""

import json
from typing import Any

import pyarrow as pa
import pytest

from clipmill.errors import UserError
from curation.captioners.base import NoCaption
from curation.captioners.structured import Structure

PROPERTIES: dict[str, Any] = {
    "caption": {"type": "string"},
    "camera": {"enum": ["static", "pan"]},
    "people": {"type": ["integer", "null"], "minimum": 0, "description": "number of people"},
    "speed": {"type": "number"},
    "indoor": {"type": "boolean"},
    "styles": {"type": "array", "items": {"type": "string"}},
    "place": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SCHEMA: dict[str, Any] = {"type": "object", "properties": PROPERTIES, "required": ["caption", "camera"]}
ANSWER = {
    "caption": "A dog\nruns.",
    "camera": "pan",
    "people": None,
    "speed": 2,
    "styles": ["a\x00b"],
    "place": {"city": "Ulm"},
}


def test_fields_have_the_types_of_the_schema():
    structure = Structure(SCHEMA)
    kinds = {field.name: field.type for field in structure.fields}
    assert kinds == {
        "camera": pa.string(),
        "people": pa.int64(),
        "speed": pa.float64(),
        "indoor": pa.bool_(),
        "styles": pa.list_(pa.string()),
        "place": pa.string(),
    }
    assert structure.fields[1].metadata[b"meaning"] == b"number of people"
    caption, fields = structure.read(json.dumps(ANSWER))
    assert caption == "A dog runs."
    assert fields == {
        "camera": "pan",
        "people": None,
        "speed": 2,
        "indoor": None,
        "styles": ["ab"],
        "place": '{"city": "Ulm"}',
    }
    assert pa.array([fields["speed"]], kinds["speed"]).to_pylist() == [2.0]


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "<think>maybe {{a cat}}</think> {}", "```\n{}```"])
def test_what_models_put_around_an_object_is_taken_off(around: str):
    assert Structure(SCHEMA).read(around.format(json.dumps(ANSWER)))[1]["camera"] == "pan"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("A dog runs.", "the answer is not JSON"),
        ('{"caption": "A dog', "the answer is not JSON"),
        ("[" * 100_000, "the answer is not JSON"),
        ("[1]", r"the answer does not match the schema: \[1\] is not of type 'object'"),
        ('{"caption": "A dog runs."}', "'camera' is a required property"),
        ('{"caption": "x", "camera": "crane"}', "camera does not match the schema: 'crane' is not one of"),
        ('{"caption": "x", "camera": "pan", "people": -1}', "people does not match the schema"),
        ('{"caption": "x", "camera": "pan", "people": 1.5}', "people does not match the schema"),
        ('{"caption": "x", "camera": "pan", "speed": NaN}', "not JSON"),
        ('{"caption": " ", "camera": "pan"}', "the caption is empty"),
        ('{"caption": 5, "camera": "pan"}', "caption does not match the schema"),
    ],
)
def test_an_answer_that_does_not_match_is_a_reason(answer: str, reason: str):
    with pytest.raises(NoCaption, match=reason):
        Structure(SCHEMA).read(answer)


def test_an_answer_that_was_cut_says_so():
    with pytest.raises(NoCaption, match="not JSON: max_tokens was reached before its end"):
        Structure(SCHEMA).read('{"caption": "A dog', cut=True)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objekt"}, "not a JSON schema: 'objekt' is not valid"),
        ({"type": "string"}, "expected `type: object` with `properties`"),
        ({"type": "object", "properties": {"text": {"type": "string"}}}, "expected a required property `caption`"),
        ({"type": "object", "properties": {"caption": {"type": "string"}}}, "expected a required property `caption`"),
        (SCHEMA | {"properties": PROPERTIES | {"Camera Angle": {}}}, "lower-case letters, digits and '_'"),
    ],
)
def test_a_schema_without_a_caption_is_refused(schema: dict[str, Any], reason: str):
    with pytest.raises(UserError, match=reason):
        Structure(schema)


def test_references_lead_nowhere_outside_the_schema():
    inside = SCHEMA | {
        "$defs": {"camera": {"enum": ["pan"]}},
        "properties": {"caption": {"type": "string"}, "camera": {"$ref": "#/$defs/camera"}},
    }
    assert Structure(inside).read('{"caption": "x", "camera": "pan"}')[1] == {"camera": "pan"}
    outside = SCHEMA | {"properties": {"caption": {"type": "string"}, "camera": {"$ref": "http://127.0.0.1:9/x.json"}}}
    with pytest.raises(NoCaption, match="cannot be checked"):
        Structure(outside).read('{"caption": "x", "camera": "pan"}')


def test_strict_mode_is_asked_for_where_the_schema_allows_it():
    closed = {
        "type": "object",
        "properties": {"caption": {"type": "string"}},
        "required": ["caption"],
        "additionalProperties": False,
    }
    assert Structure(closed).request()["json_schema"]["strict"]
    assert not Structure(SCHEMA).request()["json_schema"]["strict"]
