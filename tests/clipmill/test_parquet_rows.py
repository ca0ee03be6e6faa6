"""Rows of a Parquet file by number, whatever its row groups."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from clipmill.parquet_rows import rows_of


@given(st.integers(0, 40), st.integers(1, 12), st.sets(st.integers(0, 50)))
def test_the_rows_are_those_with_these_numbers(count: int, per_group: int, numbers: set[int]):
    table = pa.table({"a": list(range(count)), "b": [f"text {i}" for i in range(count)]})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=per_group)
    rows = np.array(sorted(numbers), np.int32)
    expected = [i for i in sorted(numbers) if i < count]
    assert rows_of(pq.ParquetFile(file), rows).equals(table.take(pa.array(expected, pa.int64())))
    assert rows_of(pq.ParquetFile(file), rows, ["b"])["b"].to_pylist() == [f"text {i}" for i in expected]


def test_row_groups_without_these_rows_are_not_read():
    table = pa.table({"a": [bytes([i]) * 1000 for i in range(100)]})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=10, compression="none", use_dictionary=False)
    content = bytearray(file.getvalue())
    place = content.index(bytes([55]) * 1000)
    content[place - 20 : place + 1000] = b"\xff" * 1020  # damages the group of rows 50 to 59
    assert rows_of(pq.ParquetFile(io.BytesIO(content)), np.array([7, 48, 60])).num_rows == 3
