"""Rules as a person writes them: what is accepted, what it means, and the exact sentence for what is refused."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from clipmill.errors import UserError
from curation.selection.rules import Rule, Rules, load_preset, load_rules, share


def rule(**bounds: Any) -> Rule:
    return Rule.from_values(bounds, origin="r")


@pytest.mark.parametrize(
    ("percentage", "exact"),
    [
        ("0%", Fraction(0)),
        ("25%", Fraction(1, 4)),
        ("12.5%", Fraction(1, 8)),
        ("0.1%", Fraction(1, 1000)),
        ("99.9%", Fraction(999, 1000)),
    ],
)
def test_a_percentage_is_an_exact_share(percentage: str, exact: Fraction) -> None:
    assert share(percentage) == exact


@pytest.mark.parametrize(("given", "kept"), [("25%", "25%"), (" 25 % ", "25%"), ("0%", "0%"), ("99.99%", "99.99%")])
def test_percentages_are_kept_as_text(given: str, kept: str) -> None:
    assert rule(drop_lowest=given).drop_lowest == kept
    assert rule(drop_highest=given).drop_highest == kept


@pytest.mark.parametrize("given", ["100%", "100.5%", "250%", "-1%", "25", "%", "1e1%", "25%x", 25, 0.25, True, ["25%"]])
@pytest.mark.parametrize("bound", ["drop_lowest", "drop_highest"])
def test_anything_else_is_refused(bound: str, given: Any) -> None:
    with pytest.raises(UserError) as error:
        rule(**{bound: given})
    expected = f"r: {bound}: expected a percentage from 0% to below 100%, such as '25%', got {given!r}"
    assert str(error.value) == expected


def test_bounds_are_those_that_are_given_in_one_order() -> None:
    full = rule(max=2, min=1, drop_highest="10%", drop_lowest="20%")
    assert list(full.bounds().items()) == [("drop_lowest", "20%"), ("drop_highest", "10%"), ("min", 1.0), ("max", 2.0)]
    assert rule(min=0).bounds() == {"min": 0.0}
    assert rule(max=0, unscored="keep").bounds() == {"max": 0.0}


@pytest.mark.parametrize(
    ("bounds", "ranks"),
    [({"min": 1}, False), ({"max": 1}, False), ({"drop_lowest": "0%"}, True), ({"drop_highest": "1%", "max": 1}, True)],
)
def test_percentiles_depend_on_the_other_clips(bounds: dict[str, Any], ranks: bool) -> None:
    assert rule(**bounds).ranks() is ranks


def test_unscored_clips_are_dropped_unless_said() -> None:
    assert rule(min=1).unscored == "drop"
    assert rule(min=1, unscored="keep").unscored == "keep"


@pytest.mark.parametrize(
    ("bounds", "sentence"),
    [
        ({}, "empty rule: set drop_lowest, drop_highest, min or max"),
        ({"unscored": "keep"}, "empty rule: set drop_lowest, drop_highest, min or max"),
        ({"min": 2.5, "max": 2}, "min 2.5 is above max 2: no clip can pass"),
        (
            {"drop_lowest": "50%", "drop_highest": "50%"},
            "drop_lowest 50% and drop_highest 50% together drop every clip",
        ),
        (
            {"drop_lowest": "99%", "drop_highest": "1.5%"},
            "drop_lowest 99% and drop_highest 1.5% together drop every clip",
        ),
    ],
)
def test_rules_that_leave_nothing_are_refused(bounds: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        rule(**bounds)
    assert str(error.value) == f"r: Rule: {sentence}"


def test_rules_that_leave_something_are_not() -> None:
    assert rule(min=2, max=2).bounds() == {"min": 2.0, "max": 2.0}
    assert rule(drop_lowest="50%", drop_highest="49.99%").ranks()
    assert rule(min=-1e300, max=1e300).max == 1e300


@pytest.mark.parametrize("value", ["2", True, float("nan"), float("inf"), [1]])
def test_a_bound_is_a_finite_number(value: Any) -> None:
    with pytest.raises(UserError):
        rule(min=value)


@pytest.mark.parametrize("name", ["a", "A-1_b", "0", "x" * 100])
def test_names_are_file_names(name: str) -> None:
    assert Rules(name="old").named(name).name == name


@pytest.mark.parametrize("name", ["", "-a", "_a", "a.b", "a/b", "../a", "a b", "é", "x" * 101, "a\n"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError) as error:
        Rules(name="old").named(name)
    assert str(error.value) == f"--name: name: expected a name of letters, digits, '-' and '_', got {name!r}"


def test_renamed_rules_are_the_same_rules() -> None:
    rules = Rules.from_values({"name": "a", "rules": {"motion": {"min": 1}}, "where": "true"}, origin="o")
    assert rules.as_given() == {"name": "a", "rules": {"motion": {"min": 1.0}}, "where": "true"}
    assert rules.named("b").as_given() == rules.as_given() | {"name": "b"}
    assert Rules(name="empty").as_given() == {"name": "empty"}


def test_a_file_is_named_after_itself_unless_it_says(tmp_path: Path) -> None:
    file = tmp_path / "fast-ones.yaml"
    file.write_text("rules: {motion: {min: 1}}\n")
    assert load_rules(str(file)).as_given() == {"name": "fast-ones", "rules": {"motion": {"min": 1.0}}}
    file.write_text("name: other\nwhere: width > 1\n")
    assert load_rules(str(file)).as_given() == {"name": "other", "where": "width > 1"}
    file.write_text("# nothing\n")
    with pytest.raises(UserError) as error:
        load_rules(str(file))
    assert str(error.value) == f"{file} is empty: expected name, rules and where"
    file.write_text("rules: {motion: {min: x}}\n")
    with pytest.raises(UserError, match=r"fast-ones\.yaml: rules\.motion\.min: "):
        load_rules(str(file))


def test_presets_are_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nwhere: 'true'\n")
    (tmp_path / "three.txt").write_text("name: three\n")
    assert load_preset("two", tmp_path).name == "two"
    with pytest.raises(UserError) as error:
        load_preset("tow", tmp_path)
    assert str(error.value) == "unknown preset 'tow'. Did you mean 'two'? Known: one, two."
    with pytest.raises(UserError):
        load_preset("three", tmp_path)
