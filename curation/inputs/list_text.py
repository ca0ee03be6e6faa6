"""Lists as text: the encoding, the separator, and the rows of .csv, .tsv and .txt files, however they were exported.

A row that cannot be read is a value with its line and a reason, and the rows after it are read.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

from clipmill.errors import UserError
from curation.inputs.list_cells import ADDRESS_NAMES, Columns, columns_of, looks_like_address, unnamed_columns

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
WESTERN = "cp1252"
_MAX_LINE_CHARS = 4 << 20
_MAX_CELL_CHARS = 1 << 20
_MAX_RECORD_CHARS = 16 << 20
_SAMPLE_CHARS = 1 << 20
_SAMPLE_ROWS = 20
_CHECKED_BYTES = 1 << 20
_UTF16_SAMPLE_BYTES = 4096
_CONCAT = re.compile(r"file\s+'(.+)'")
_UTF8_TEXT = re.compile("[^\x00-\x7f\udc80-\udcff]")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_FOREIGN = re.compile("[^\\W\\d_\x00-\x7f]{3}|[\x81\x8d\x8f\x90\x9d\xff\\ufffd]")
"""In text decoded as cp1252: several letters outside ASCII in a row, or characters that nobody writes: another
encoding."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used, where it is, and why."""

    line: int
    problem: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """The cells of a row. Bytes that are not UTF-8 are lone surrogates, as in `os.fsdecode`."""

    line: int
    cells: tuple[object, ...]
    columns: Columns


@dataclass(kw_only=True)
class Form:
    """How a list is written, for a note to the user."""

    encoding: str = "utf-8"
    separator: str = ""
    header: bool = True
    columns: Columns | None = None
    names: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    """Column -> why it is not kept."""


def read_delimited(content: bytes, name: str, form: Form, *, preferred: str = ",") -> Iterator[Record | BadRow]:
    """The rows of a table with a separator, with or without a header; `form` tells what was recognized.

    Raises UserError if no column has an address.
    """
    form.encoding = encoding_of(content)
    text = _opened(content, form.encoding)
    first = text.readline(_MAX_LINE_CHARS)
    skipped = 1
    if not re.fullmatch(r"\ufeff?sep=.\s*", first, re.IGNORECASE):  # a line for Excel
        text, skipped = _opened(content, form.encoding), 0
    form.separator, form.columns, form.header, form.names = _layout(text.read(_SAMPLE_CHARS), name, preferred)
    text = _opened(content, form.encoding)
    for _ in range(skipped):
        text.readline(_MAX_LINE_CHARS)
    yield from _records(text, form, skipped)


def read_lines(content: bytes, name: str, form: Form) -> Iterator[Record | BadRow]:
    """The rows of a .txt: an address per line, an optional caption after a tab, # comments; lists for FFmpeg's concat.

    A first line with names of columns makes it a table, separated by tabs.
    """
    form.encoding = encoding_of(content)
    head = _opened(content, form.encoding).readline(_MAX_LINE_CHARS).strip().split("\t")
    if not looks_like_address(head[0]) and columns_of(tuple(head)):
        yield from read_delimited(content, name, form, preferred="\t")
        return
    columns = Columns(address=0, caption=1, metadata={})
    for number, line in read_text_lines(content, form.encoding):
        if isinstance(line, BadRow):
            yield line
        elif not line.startswith(("#", "ffconcat version")):
            address, _, caption = line.strip("\r\n").partition("\t")
            yield Record(line=number, cells=(_address(address.strip()), caption), columns=columns)


def read_text_lines(content: bytes, encoding: str) -> Iterator[tuple[int, str | BadRow]]:
    """Number and text of each line that is not blank."""
    lines = _Lines(_opened(content, encoding))
    while True:
        lines.used.clear()
        try:
            line = next(lines)
        except StopIteration:
            return
        except _TooLong as error:
            yield lines.number, BadRow(line=lines.number, problem=str(error))
            continue
        if line.strip():
            yield lines.number, line


def encoding_of(content: bytes) -> str:
    """utf-8, utf-16, utf-32, or cp1252 for bytes that are not UTF-8 at all; a text of its own may still be wrong."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = content[:_UTF16_SAMPLE_BYTES]
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(head) >= 4 and head[start::2].count(0) > len(head) // 4 > 2 * head[1 - start :: 2].count(0):
            return encoding
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    damaged = False
    for i in range(0, len(content), _CHECKED_BYTES):
        text = decoder.decode(content[i : i + _CHECKED_BYTES], final=i + _CHECKED_BYTES >= len(content))
        if not text.isascii():
            if _UTF8_TEXT.search(text):
                return "utf-8"
            damaged = True
    return WESTERN if damaged else "utf-8"


def decoded(text: str, encoding: str) -> str:
    """A cell as text. Raises UserError if its bytes are in none of the encodings that are recognized."""
    if not _NOT_UTF8.search(text):
        return text
    if encoding == WESTERN:
        western = text.encode("utf-8", "surrogateescape").decode(WESTERN, "replace")
        if not _FOREIGN.search(western):
            return western
        raise UserError("neither UTF-8 nor Western European text (Latin-1, cp1252); save the list as UTF-8")
    raise UserError("not valid UTF-8 in the list; save the list as UTF-8")


def _opened(content: bytes, encoding: str) -> TextIO:
    """Lines as they are; a file of an old Mac ends them with a carriage return."""
    codec, errors = ("utf-8-sig", "surrogateescape") if encoding in ("utf-8", WESTERN) else (encoding, "replace")
    return io.TextIOWrapper(io.BytesIO(content), codec, errors, newline="")


class _TooLong(Exception):
    """A line, which is skipped, or a row over many lines, beyond the limits."""


class _Lines:
    """Lines for a CSV parser. Those of the current record are kept, so that it can be read in another way."""

    def __init__(self, text: TextIO, number: int = 0) -> None:
        self._text, self.number = text, number
        """Number of the last line that was given."""
        self._waiting: list[str] = []
        self.used: list[str] = []
        self._used_chars = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not self.used:
            self._used_chars = 0
        if self._waiting:
            line = self._waiting.pop()
        elif not (line := self._text.readline(_MAX_LINE_CHARS)):
            raise StopIteration
        self.number += 1
        self._used_chars += len(line)
        if len(line) >= _MAX_LINE_CHARS and line[-1] not in "\r\n":
            while (rest := self._text.readline(_MAX_LINE_CHARS)) and rest[-1] not in "\r\n":
                pass
            raise _TooLong(f"a line of more than {_MAX_LINE_CHARS:,} characters")
        self.used.append(line)
        if self._used_chars > _MAX_RECORD_CHARS:
            raise _TooLong(f"a row of more than {_MAX_RECORD_CHARS:,} characters")
        return line

    def give_back(self) -> str:
        """The first line of the current record; the others will be read again."""
        first, *others = self.used
        self._waiting += reversed(others)
        self.number -= len(others)
        return first


def _records(text: TextIO, form: Form, line: int) -> Iterator[Record | BadRow]:
    columns = form.columns
    assert columns is not None
    lines, width = _Lines(text, line), len(form.names)
    csv.field_size_limit(_MAX_CELL_CHARS)
    rows = csv.reader(lines, delimiter=form.separator, strict=True)
    awaits_header = form.header
    while True:
        lines.used.clear()
        line = lines.number + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except (csv.Error, _TooLong) as error:
            if isinstance(error, _TooLong):
                yield BadRow(line=lines.number, problem=str(error))
            if not lines.used:
                continue
            cells = [_unquoted(cell.strip()) for cell in lines.give_back().rstrip("\r\n").split(form.separator)]
            if len(cells) != width:
                yield BadRow(line=line, problem=f'quotes that do not match ({error}); quote a cell as "a ""b"" c"')
                continue
        while len(cells) > width and not cells[-1].strip():
            cells.pop()
        if not any(cell.strip() for cell in cells):
            continue
        if awaits_header:
            awaits_header = False
            continue
        short = len(cells) < width and len(cells) > columns.address and looks_like_address(cells[columns.address])
        if len(cells) == width or short:
            yield Record(line=line, cells=(*cells, *[""] * (width - len(cells))), columns=columns)
        else:
            yield BadRow(line=line, problem=f"a row of {len(cells)} columns, expected {width}")


def _layout(sample: str, name: str, preferred: str) -> tuple[str, Columns, bool, tuple[str, ...]]:
    """Separator, columns, whether there is a header, and the names: from the beginning of a table."""
    heads = {separator: _head(sample, separator) for separator in sorted(SEPARATORS, key=lambda s: s != preferred)}
    named = [
        (separator, columns, True, tuple(rows[0]))
        for separator, rows in heads.items()
        if rows and (columns := columns_of(tuple(rows[0])))
    ]
    unnamed = [
        (separator, columns, False, tuple(f"column_{i + 1}" for i in range(len(rows[0]))))
        for separator, rows in heads.items()
        if rows and len({len(row) for row in rows}) == 1 and (columns := unnamed_columns(rows[0]))
    ]
    for layouts in (named, unnamed):
        if layouts:
            return max(layouts, key=lambda layout: len(layout[3]))
    names = max(heads.values(), key=lambda rows: len(rows[0]) if rows else 0, default=[])
    raise no_address_column(name, tuple(names[0]) if names else ())


def no_address_column(name: str, names: tuple[str, ...]) -> UserError:
    """The error for a list without a column that has a known name."""
    if not any(names):
        return UserError(f"the list {name!r} is empty; expected an address per row")
    return UserError(
        f"the list {name!r} has columns {[n[:60] for n in names[:50]]}; expected an address column named one of "
        f"{list(ADDRESS_NAMES)}"
    )


def _head(sample: str, separator: str) -> list[list[str]]:
    """The first rows that are not blank."""
    csv.field_size_limit(_MAX_CELL_CHARS)
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(sample, newline=""), delimiter=separator):
            if any(cell.strip() for cell in row):
                rows.append(row)
            if len(rows) == _SAMPLE_ROWS:
                break
    except csv.Error:
        pass  # the rows before it show the layout, and `_records` reports the row that cannot be read
    while rows and len(rows[0]) > 1 and not any(row[-1].strip() for row in rows if len(row) == len(rows[0])):
        rows = [row[:-1] if len(row) == len(rows[0]) else row for row in rows]  # columns that Excel left empty
    return rows


def _address(cell: str) -> str:
    """The address of a line, which may be in quotes, or in those of `file 'a.mp4'` for FFmpeg's concat."""
    match = _CONCAT.fullmatch(cell)
    return match[1].replace("'\\''", "'") if match else _unquoted(cell)


def _unquoted(cell: str) -> str:
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
