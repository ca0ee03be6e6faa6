"""The `where` of a selection: one boolean SQL expression over the joined view, checked before it runs."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from clipmill.errors import UserError
from curation.dataset.joined import joined_query
from curation.dataset.sql import literal, sentence

_REFUSED = {
    "SUBQUERY": "a query inside the condition",
    "STAR": "'*' or COLUMNS()",
    "WINDOW": "a window function",
}
_SIZED = {
    *("range", "generate_series", "repeat", "lpad", "rpad", "list_resize", "array_resize", "printf", "format", "bar"),
    *("bitstring", "to_base", "equi_width_bins", "replace", "regexp_replace", "array_to_string"),
    *("array_to_string_comma_default", "list_string_agg", "list_reduce", "array_reduce", "reduce"),
}
"""Functions whose answer is as large as a number says, or as large as the product of what they are given: DuckDB
computes those of constants while it plans, whatever its memory limit."""
_ADDING = {
    *("||", "concat", "concat_ws", "list_concat", "list_cat", "array_concat", "array_cat", "list_value", "list_pack"),
    *("struct_pack", "row", "map", "list_append", "list_prepend", "array_append", "array_prepend", "array_push_back"),
    *("array_push_front", "list_zip"),
}
"""Functions whose answer is as large as all they are given together: in a lambda, nested, they double it each time."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A checked condition. If `missing` has names, it cannot run, and `complaint` is DuckDB's message."""

    sql: str
    columns: frozenset[str]
    """The columns of the joined view that it reads."""
    missing: tuple[str, ...] = ()
    complaint: str = ""


def read_condition(
    connection: duckdb.DuckDBPyConnection, text: str, known: Iterable[str], rows: str | None = None
) -> Condition:
    """Check that `text` is one boolean expression over the view `joined`, whose columns are `known`; or over
    `rows`, SQL for a table.

    Rejects statements, clauses and subqueries. Raises UserError, with DuckDB's message if it has one.
    """
    known = list(known)
    lower_known = {column.lower() for column in known}
    expression = _parsed(connection, text)
    unstable = _unstable_functions(connection)
    lambdas = (node for node in _nodes(expression) if node.get("class") == "LAMBDA")
    in_lambda = {id(inner) for node in lambdas for inner in _nodes(node)}
    for node in _nodes(expression):
        if node.get("class") in _REFUSED:
            raise UserError(f"where: {_REFUSED[node['class']]} is not allowed, got {text!r}")
        called = node.get("function_name", "").lower()
        if node.get("class") == "COLUMN_REF" and len(node["column_names"]) == 1:  # as `current_date` is parsed
            name = node["column_names"][0].lower()
            called = "" if name in lower_known else name
        if called in _SIZED or (called in _ADDING and id(node) in in_lambda):
            raise UserError(
                f"where: {called}() is not allowed, got {text[:200]!r}: the size of its result is unbounded"
            )
        if called in unstable or f"get_{called}" in unstable:
            raise UserError(
                f"where: {called}() is not allowed, got {text!r}: a condition must depend on the columns of a clip "
                "alone, and give the same answer each time"
            )
    names = {
        name.lower()
        for node in _nodes(expression)
        if node.get("class") == "COLUMN_REF"
        for name in node["column_names"]
    }
    columns = frozenset(column for column in known if column.lower() in names)
    sql = f"(\n{text}\n)"  # the line ends keep a comment in the text from hiding the bracket
    try:
        rows = rows or f"({joined_query(connection, known)})"
        kind = connection.execute(f"DESCRIBE SELECT {sql} FROM {rows} AS joined WHERE {sql}").fetchall()[0][1]
    except duckdb.Error as error:
        missing = tuple(sorted(names - {column.lower() for column in columns} - {"joined"}))
        if isinstance(error, duckdb.BinderException) and missing:
            return Condition(sql=sql, columns=columns, missing=missing, complaint=sentence(error))
        raise UserError(f"where: {sentence(error)} (in {text!r})") from error
    if kind != "BOOLEAN":
        raise UserError(f"where: expected a boolean condition, {text!r} is of type {kind}")
    return Condition(sql=sql, columns=columns)


def _unstable_functions(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Functions that have a side effect (sleep, log), or whose answer changes from query to query (random, today)."""
    functions = connection.execute(
        "SELECT function_name, stability = 'CONSISTENT' AND NOT has_side_effects, macro_definition "
        "FROM duckdb_functions() WHERE function_type IN ('scalar', 'macro')"
    ).fetchall()
    unstable = {name.lower() for name, stable, macro in functions if macro is None and not stable}
    macros = {name.lower(): set(re.findall(r"\w+", macro.lower())) for name, _, macro in functions if macro}
    while calling := {name for name, words in macros.items() if words & unstable} - unstable:
        unstable |= calling
    return unstable


def _parsed(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    """Parse the expression into DuckDB's syntax tree. The text must not change the query around it."""
    plain, _ = _tree(connection, "true")
    around, expression = _tree(connection, text)
    if around != plain or not isinstance(expression, dict):
        raise UserError(f"where: expected a single expression, got {text!r}")
    return expression


def _tree(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[Any, Any]:
    query = f"SELECT 1 FROM joined WHERE (\n{text}\n)"
    try:
        row = connection.execute(f"SELECT json_serialize_sql({literal(query)})").fetchone()
        assert row is not None
        tree = json.loads(row[0])
    except RecursionError as error:
        raise UserError(f"where: the condition is nested too deeply: {text[:60]!r}...") from error
    except duckdb.Error as error:
        raise UserError(f"where: {sentence(error)} (in {text!r})") from error
    if tree["error"]:
        raise UserError(f"where: {tree['error_message']} (in {text!r})")
    expression = tree["statements"][0]["node"].pop("where_clause", None)
    return tree, expression


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        branch = waiting.pop()
        if isinstance(branch, dict):
            yield branch
            waiting += branch.values()
        elif isinstance(branch, list):
            waiting += branch
