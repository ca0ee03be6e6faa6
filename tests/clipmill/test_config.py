"""Settings from YAML: numbers are numbers, and files of any shape are settings or one sentence."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clipmill.config import Config, known_name, parse_yaml, read_yaml, unknown_name
from clipmill.errors import UserError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(3000))


class Bounded(Config):
    bound: float = 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("1e9", 1e9), ("1E-3", 1e-3), (".5e3", 500), ("-2.e4", -2e4), ("+1e+2", 100), ("1_0e1", 100)),
        *(("1.5", 1.5), ("3", 3), ("-.5", -0.5), ("1.0e+3", 1000)),
    ],
)
def test_a_number_in_scientific_notation_is_a_number(text: str, number: float):
    assert Bounded.from_values(parse_yaml(f"bound: {text}", origin="x"), origin="x").bound == number


@pytest.mark.parametrize("text", ["1e", "e9", "1e9x", "0x1g", "1e9.5", "'1e9'"])
def test_what_only_looks_like_a_number_stays_text(text: str):
    assert parse_yaml(f"key: {text}", origin="x") == {"key": text.strip("'")}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: " + "[" * 3000 + "]" * 3000, "nested more than 50 levels deep"),
        ("a: " + "{b: " * 3000 + "1" + "}" * 3000, "nested more than 50 levels deep"),
        (LAUGHS, "with its aliases expanded"),
        (CHAIN, "with its aliases expanded"),
        ("big: &a " + "x" * 100_000 + "\nall: [" + ", ".join(["*a"] * 1000) + "]", "with its aliases expanded"),
        ("a: &a [1, *a]", "an alias refers to a node that contains it"),
        ("a: &a {b: *a}", "an alias refers to a node that contains it"),
        ('a: "x\\uD800"', "expected valid Unicode, got half a character"),
        ('"\\udfff": 1', "expected valid Unicode, got half a character"),
        ("n: 1" + "0" * 5000, "not valid YAML"),
        ("when: 2024-99-99", "not valid YAML"),
        ("a: !!timestamp abc", "not a value of type timestamp"),
        ("a: !!bool abc", "not a value of type bool"),
        ('a: !!int ""', "not a value of type int"),
        ("a: !!float x", "not a value of type float"),
        ("? !!timestamp x\n: 1", "not a value of type timestamp"),
        ("a: [!!timestamp x]", "not a value of type timestamp"),
        ("a: !!set {b: !!bool x}", "not a value of type bool"),
        ("a: 1\na: 2", "duplicate key 'a'"),
        ("? [a]\n: 1", "keys must be strings"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML"),
        ("a: *b", "not valid YAML"),
        ("[1]", "expected a mapping, got list"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        (b"a: \xff", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_yaml_of_any_shape_is_one_sentence(text: str | bytes, reason: str):
    with pytest.raises(UserError, match=f"(?s)^settings.yaml.*{reason}"):
        parse_yaml(text, origin="settings.yaml")


def test_anchors_and_merges_within_bounds_are_plain_yaml():
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: *b\n"
    assert parse_yaml(text, origin="x") == {"base": {"x": 1, "y": 2}, "one": {"x": 1, "y": 3}, "two": {"x": 1, "y": 2}}


@given(st.binary(max_size=300) | st.text(alphabet="&*a:-[]{} \n!<1e.'\"#|>?%@,", max_size=60))
def test_any_text_is_a_mapping_or_a_user_error(text: str | bytes):
    try:
        values = parse_yaml(text, origin="settings.yaml")
    except UserError as error:
        assert str(error).startswith("settings.yaml")  # noqa: PT017
    else:
        assert repr(values) == repr(yaml.safe_load(text) or {})


def test_a_file_that_is_too_large_a_folder_or_missing(tmp_path: Path):
    (tmp_path / "large.yaml").write_bytes(b"#" * (2 << 20))
    for name, reason in (("large.yaml", "larger than"), ("none.yaml", "file not found"), (".", "a folder")):
        with pytest.raises(UserError, match=reason):
            read_yaml(str(tmp_path / name))


def test_a_mistake_names_the_nearest_key_and_is_short():
    with pytest.raises(UserError, match="Did you mean 'bound'"):
        Bounded.from_values({"bond": 1}, origin="x")
    assert len(unknown_name("key", "x" * 100_000, ["bound"])) < 300


def test_a_name_may_be_cut_short_as_long_as_one_alone_begins_so():
    known = ["text", "text_area", "motion", "motion_bucket", "similarity"]
    assert known_name("score", "sim", known) == "similarity"
    assert known_name("score", "text", known) == "text"
    assert known_name("score", "text_", known) == "text_area"
    with pytest.raises(UserError, match=r"ambiguous score 'mot': it could be motion, motion_bucket\."):
        known_name("score", "mot", known)
    for name in ("", "area", "similarity_x"):
        with pytest.raises(UserError, match="Known: motion, motion_bucket, similarity, text, text_area"):
            known_name("score", name, known)


def test_of_many_known_names_the_nearest_are_listed() -> None:
    known = [f"model-{i}" for i in range(100)]
    message = unknown_name("model", "modell-17", known)
    assert "Did you mean 'model-17'?" in message
    assert message.count("model-") == 9
    assert message.endswith(" and 92 more.")
