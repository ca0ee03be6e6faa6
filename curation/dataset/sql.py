"""The only module that opens DuckDB connections and turns names and paths into SQL text.

A connection can only access the files it was opened for: injected SQL cannot open other files, create files outside the
spill folder, load extensions or change settings.
"""

import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence

import duckdb
import pyarrow as pa
from fsspec import AbstractFileSystem

from clipmill import storage
from clipmill.errors import UserError
from clipmill.text import is_unicode


def open_connection(
    fs: AbstractFileSystem,
    tables: Mapping[str, Sequence[str] | pa.Table],
    *,
    memory: str = "1GiB",
) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with a view per entry of `tables`: over Parquet files, as paths inside `fs`, or a table.

    These files and a spill folder of its own are all it can reach, and its settings are locked. Close it when done;
    queries larger than `memory` spill to disk. Raises duckdb.Error for files that are not Parquet.
    """
    connection = duckdb.connect(
        config={
            "allow_community_extensions": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "memory_limit": memory,
            "preserve_insertion_order": False,
            "python_enable_replacements": False,
            "temp_directory": os.path.join(tempfile.gettempdir(), f"clipmill-{uuid.uuid4().hex[:12]}"),
        }
    )
    try:
        if not storage.is_local(fs):
            connection.register_filesystem(fs)
        files = {
            view: [storage.address(fs, path) for path in paths]
            for view, paths in tables.items()
            if not isinstance(paths, pa.Table)
        }
        readable = [address for addresses in files.values() for address in addresses]
        # A file is checked twice: as the pattern it is asked for with, and as the path that the pattern matches.
        _set(connection, "allowed_paths", list_of(dict.fromkeys([*readable, *map(without_wildcards, readable)])))
        _set(connection, "enable_external_access", "false")
        for view, source in tables.items():
            if isinstance(source, pa.Table):
                connection.register(f"_{view}", source)
                rows = quoted(f"_{view}")
            else:
                rows = f"read_parquet({list_of(map(without_wildcards, files[view]))})"
            connection.execute(f"CREATE VIEW {quoted(view)} AS SELECT * FROM {rows}")
        _set(connection, "lock_configuration", "true")
    except BaseException:
        connection.close()
        raise
    return connection


def batches(connection: duckdb.DuckDBPyConnection, query: str, rows: int) -> Iterator[pa.RecordBatch]:
    """The answer to a query, about `rows` rows at a time. Raises duckdb.Error, also for what fails while it is read."""
    relation = connection.sql(query)
    assert relation is not None
    try:
        yield from relation.to_arrow_reader(rows)
    except (OSError, pa.ArrowException) as error:  # as which Arrow's stream passes on what DuckDB raises
        raise duckdb.Error(str(error)) from error


def quoted(name: str) -> str:
    """Quote a name as an SQL identifier. Raises UserError if it is not valid Unicode."""
    return '"' + _encodable(name).replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text as an SQL string. Raises UserError if it is not valid Unicode."""
    return "'" + _encodable(text).replace("'", "''") + "'"


def list_of(texts: Iterable[str]) -> str:
    """A list of texts as an SQL list of strings."""
    return f"[{', '.join(map(literal, texts))}]"


def without_wildcards(path: str) -> str:
    """Escape a path for DuckDB: each wildcard becomes a one-character set."""
    return re.sub(r"[*?\[]", lambda match: f"[{match.group()}]", path)


def sentence(error: duckdb.Error) -> str:
    """DuckDB's error message without its excerpt of the query."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())


def _encodable(text: str) -> str:
    if not is_unicode(text):
        raise UserError(f"expected valid UTF-8, got {text!r}: it cannot be part of a query")
    return text


def _set(connection: duckdb.DuckDBPyConnection, setting: str, value: str) -> None:
    connection.execute(f"SET {setting} = {value}")
