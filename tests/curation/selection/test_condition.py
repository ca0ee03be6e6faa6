"""The condition `where` of a selection: one boolean expression over the joined view, and nothing else."""

from pathlib import Path

import pytest

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.saved import selection_names
from tests.curation.selection.datasets import chosen, make, rules, select


def test_where_reads_the_joined_view_and_null_is_unscored(ten: Dataset) -> None:
    selection = select(ten, rules("audio AND text_area < 0.06 -- a comment"))
    assert chosen(ten) == ["s0-0000-0", "s0-0003-0"]
    step = selection.funnel[0]
    assert (step.rule, step.unscored, step.removed) == ("where", 1, 7)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("widht > 1", r'"widht" not found.*"width"'),
        ("width >", "syntax error"),
        ("width", "boolean"),
        ("width > 'x'", "Could not convert"),
        ("true; DROP VIEW clips", "syntax error"),
        ("true) UNION ALL SELECT (1", "a single expression"),
        ("true) GROUP BY (1", "a single expression"),
        ("true) ORDER BY (1", "a single expression"),
        ("width = $1", "a single expression"),
        ("EXISTS (SELECT 1)", "query inside"),
        ("clip_id IN (FROM read_text('/etc/passwd'))", "query inside"),
        ("COLUMNS(*) IS NOT NULL", "COLUMNS"),
        ("row_number() OVER () < 3", "window"),
        ("sum(width) > 1", "aggregates"),
        ("duplicate_rank = 0", "clipmill duplicates DATASET"),
        ("random() < 0.5", "same answer each time"),
        ("pg_sleep(60) IS NULL", "pg_sleep.. is not allowed"),
        ("list_transform([1], lambda x: sleep_ms(x)) IS NULL", "sleep_ms.. is not allowed"),
        ("repeat('x', 2000000000) <> ''", "repeat.. is not allowed"),
        ("len(range(4000000000)) > 0", "range.. is not allowed"),
        ("length(lpad(codec, 2000000000, 'x')) > 0", "lpad.. is not allowed"),
        ("length(printf('%2000000000d', width)) > 0", "printf.. is not allowed"),
        ("replace(replace(codec, 'h', 'hhhh'), 'h', 'hhhh') <> ''", "replace.. is not allowed"),
        ("len(list_transform(['x'], lambda x: x || x)) > 0", "is not allowed"),
        ("len(list_transform([1], lambda x: [x, x])) > 0", "list_value.. is not allowed"),
        ("CURRENT_DATE > '2020-01-01'", "current_date.. is not allowed"),
        ("NOT " * 900 + "true", "nested too deeply"),
        ("codec = '\ud800'", "valid UTF-8"),
    ],
)
def test_where_is_one_boolean_condition(tmp_path: Path, where: str, message: str) -> None:
    dataset = make(str(tmp_path / "d"), [{"width": i} for i in range(2000)])
    with pytest.raises(UserError, match=message):
        select(dataset, rules(where))
    assert selection_names(dataset) == []


@pytest.mark.parametrize(
    "where",
    ["list_contains(list_transform(captions, lambda c: c.text), 'x') OR true", "1 = 1", "len([codec || 'x', 'y']) = 2"],
)
def test_where_may_be_any_expression(ten: Dataset, where: str) -> None:
    assert select(ten, rules(where)).clips == 10
