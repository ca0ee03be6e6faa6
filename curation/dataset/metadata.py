"""Metadata of the sources as columns of a view, so that rules and conditions can name them.

`license` in a list becomes `license` in `where: "license = 'CC0'"`. A name that a table has itself gets `metadata_` in
front.
"""

import duckdb

from curation.dataset.sql import literal, quoted

MOST_NAMES = 500
"""Names that become columns, the most frequent first; the others are reached as `metadata['name']`."""
_NUMBER = r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?"
"""Digits that a double keeps: an id such as 007 or one of 18 digits is text."""


def add_metadata_columns(connection: duckdb.DuckDBPyConnection, view: str = "sources") -> None:
    """Replace a view that has the column `metadata` by one with a column per metadata name.

    A column is numeric (DOUBLE) if all its values are numbers, else VARCHAR. Other tables keep their column names.
    """
    known = connection.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE NOT contains(table_name, 'score_versions')"
    ).fetchall()
    if (view, "metadata", "MAP(VARCHAR, VARCHAR)") not in known:  # a table that another program wrote
        return
    found = connection.execute(
        f"SELECT name, bool_and(regexp_full_match(value, {literal(_NUMBER)})), count(*) FROM (SELECT "
        f"unnest(map_keys(metadata)) AS name, unnest(map_values(metadata)) AS value FROM {quoted(view)}) "
        f"GROUP BY name ORDER BY count(*) DESC, name LIMIT {MOST_NAMES}"
    ).fetchall()
    if not found:
        return
    used = {name.lower() for _, name, _ in known}
    columns = []
    for name, numeric, _ in sorted(found):
        column = f"metadata_{name}" if name.lower() in used else name
        if column.lower() not in used:
            used.add(column.lower())
            value = f"map_extract_value(metadata, {literal(name)})"
            columns.append(f"{f'TRY_CAST({value} AS DOUBLE)' if numeric else value} AS {quoted(column)}")
    rows = quoted(f"{view}_rows")
    connection.execute(f"ALTER VIEW {quoted(view)} RENAME TO {rows}")
    connection.execute(f"CREATE VIEW {quoted(view)} AS SELECT *, {', '.join(columns)} FROM {rows}")
