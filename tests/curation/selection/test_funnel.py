"""The funnel: counts that add up in any order of rules."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection.rules import Rules
from tests.curation.selection.datasets import check_reconciled, chosen, make, rules, select

scores = st.one_of(st.none(), st.integers(0, 4).map(float), st.floats(0, 10, width=32))


percents = st.integers(0, 49).map(lambda n: f"{n}%")


bounds = st.fixed_dictionaries(
    {"drop_lowest": percents},
    optional={
        "drop_highest": percents,
        "min": st.floats(0, 3),
        "max": st.floats(4, 10),
        "unscored": st.sampled_from(["drop", "keep"]),
    },
)


rule_sets = st.fixed_dictionaries(
    {"motion": bounds}, optional={"cut_start_s": bounds, "fps": bounds, "where": st.just("motion + fps < 9")}
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(scores, scores, scores), max_size=40), rule_sets, st.randoms())
def test_funnel_reconciles_in_any_order_of_rules(
    tmp_path_factory: pytest.TempPathFactory, clips: list[tuple], asked: dict[str, Any], random: Any
) -> None:
    columns = ("motion", "cut_start_s", "fps")
    rows = [dict(zip(columns, clip, strict=True)) for clip in clips]
    dataset = make(str(tmp_path_factory.mktemp("selection") / "d"), rows)
    where = asked.pop("where", None)
    selection = select(dataset, rules(where, **asked))
    ids = chosen(dataset)
    assert selection.clips == len(ids)
    check_reconciled(selection)

    shuffled = list(asked.items())
    random.shuffle(shuffled)
    again = select(dataset, rules(where, **dict(shuffled)))
    assert again.clips_sha256 == selection.clips_sha256
    check_reconciled(again)

    resolved = selection.resolved["rules"].values()
    if all("min" in rule and rule["min"] <= rule.get("max", math.inf) for rule in resolved):
        with_numbers = Rules.from_values({**selection.resolved, "name": "resolved"}, origin="test")
        assert select(dataset, with_numbers).clips_sha256 == selection.clips_sha256

    ranked = {step.rule: step for step in selection.funnel}
    for name, rule in asked.items():
        scored = len(rows) - ranked[name].unscored
        if set(rule) <= {"drop_lowest", "unscored"}:
            share = Fraction(rule["drop_lowest"].rstrip("%")) / 100
            assert ranked[name].removed_alone <= math.ceil(share * max(0, scored - 1))
