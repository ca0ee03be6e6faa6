"""Tables on a terminal, and numbers as text."""

import math
from collections.abc import Collection, Iterable
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pipelines.printable import printable


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], *, whole: Collection[str] = ()) -> Table:
    """A table with right-aligned numeric columns; None is printed as a dash. Cells of the columns `whole`, such as ids,
    are never wrapped, so that they can be copied."""
    cells = [list(row) for row in rows]
    grid = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        numeric = all(isinstance(row[i], int | float | None) for row in cells) and bool(cells)
        grid.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=name in whole)
    for row in cells:
        grid.add_row(*(Text(_cell(value)) for value in row))
    return grid


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return printable(str(value))


def size(count: float) -> str:
    """A human-readable byte count."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A human-readable duration; a dash if a damaged table yields a non-finite number."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def spent(tokens: int, price: float | None) -> str:
    """Tokens and what they cost."""
    return f"{tokens:,} tokens" + ("" if price is None else f", price {price:,.2f}")
