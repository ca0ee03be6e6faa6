"""The `where` of a selection: one boolean SQL expression over the joined view, checked before it runs."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from curation.errors import UserError

_REFUSED = {
    "SUBQUERY": "a query inside the condition",
    "STAR": "'*' or COLUMNS()",
    "WINDOW": "a window function",
}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A checked condition. When `missing` holds names, it cannot run, and `complaint` is DuckDB's sentence."""

    sql: str
    columns: frozenset[str]
    """The columns of the joined view that it reads."""
    missing: tuple[str, ...] = ()
    complaint: str = ""


def read_condition(connection: duckdb.DuckDBPyConnection, text: str, known: Iterable[str]) -> Condition:
    """Check that `text` is one boolean expression over the view `joined`, whose columns are `known`.

    Nothing but an expression gets through: no further statement, clause or query. Raises UserError, with DuckDB's
    own sentence where it has one.
    """
    expression = _parsed(connection, text)
    for node in _nodes(expression):
        if node.get("class") in _REFUSED:
            raise UserError(f"where: {_REFUSED[node['class']]} is not allowed, came {text!r}")
    names = {
        name.lower()
        for node in _nodes(expression)
        if node.get("class") == "COLUMN_REF"
        for name in node["column_names"]
    }
    columns = frozenset(column for column in known if column.lower() in names)
    sql = f"(\n{text}\n)"  # the line ends keep a comment in the text from hiding the bracket
    try:
        kind = connection.execute(f"DESCRIBE SELECT {sql} FROM joined WHERE {sql}").fetchall()[0][1]
    except duckdb.Error as error:
        missing = tuple(sorted(names - {column.lower() for column in columns} - {"joined"}))
        if isinstance(error, duckdb.BinderException) and missing:
            return Condition(sql=sql, columns=columns, missing=missing, complaint=sentence(error))
        raise UserError(f"where: {sentence(error)} (in {text!r})") from error
    if kind != "BOOLEAN":
        raise UserError(f"where: expected a condition that is true or false, {text!r} gives {kind}")
    return Condition(sql=sql, columns=columns)


def sentence(error: duckdb.Error) -> str:
    """What DuckDB says, without its picture of the query."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())


def _parsed(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    """The expression as DuckDB's syntax tree. The text must leave everything around it as it is without it."""
    plain, _ = _tree(connection, "true")
    around, expression = _tree(connection, text)
    if around != plain or not isinstance(expression, dict):
        raise UserError(f"where: expected one condition and nothing else, came {text!r}")
    return expression


def _tree(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[Any, Any]:
    query = f"SELECT 1 FROM joined WHERE (\n{text}\n)"
    found = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
    assert found is not None
    tree = json.loads(found[0])
    if tree["error"]:
        raise UserError(f"where: {tree['error_message']} (in {text!r})")
    expression = tree["statements"][0]["node"].pop("where_clause", None)
    return tree, expression


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from _nodes(branch)
