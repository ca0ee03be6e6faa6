"""What the columns and cells of a list mean: address, captions, metadata, or no value at all.

Names are compared in lower case without spaces and underscores: "File Name", file_name and fileName are one.
"""

import datetime
import decimal
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from clipmill.addresses import redacted
from clipmill.errors import UserError

ADDRESS_NAMES = (
    *("uri", "path", "file_path", "video_path", "clip_path", "file", "video_file", "file_name", "video_name", "video"),
    *("video_uri", "url", "video_url", "content_url", "download_url", "link", "address"),
)
"""Names of the address column; if a list has several of them, the first in this order."""
CAPTION_NAMES = ("caption", "captions", "text", "texts", "prompt", "sentence", "sentences", "description", "title")
"""Names of the caption column, in the same way."""
SYNONYMS = {
    "license": ("licence", "licenses", "licences", "license_name"),
    "author": ("uploader", "creator", "artist", "photographer"),
    "tags": ("keywords",),
}
"""Metadata under other names gets this one, unless the row has both."""
NO_VALUE = frozenset({"", "null", "nan", "none", "nil", "n/a", "na", "#n/a", "<na>", "-"})
"""Texts that mean a missing value, in any case."""
_NO_VALUE_CHARS = max(map(len, NO_VALUE))

MAX_METADATA_NAMES = 256
MAX_METADATA_CHARS = 20_000
"""Maximum length of one value."""
_MAX_NAME_CHARS = 64
_ITEM = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|(None|nan|null))\s*,?""", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+|.*\.[A-Za-z][A-Za-z0-9]{1,4}", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Roles of the columns of a list, by position."""

    address: int
    caption: int | None
    metadata: Mapping[int, str]
    """Position -> name of the metadata."""
    left_out: tuple[str, ...] = ()
    """Columns beyond the limit on their number."""


@lru_cache(maxsize=1024)
def columns_of(names: tuple[str, ...]) -> Columns | None:
    """The roles of columns with these names; None if none of them has an address."""
    plain = [_plain(name) for name in names]
    address = _first(ADDRESS_NAMES, plain)
    if address is None:
        return None
    caption = _first(CAPTION_NAMES if plain[address] != "contenturl" else (*CAPTION_NAMES, "name"), plain)  # WebVid
    others = [i for i in range(len(names)) if i not in (address, caption)]
    kept = others[:MAX_METADATA_NAMES]
    metadata = dict(zip(kept, metadata_names([names[i] or f"column_{i + 1}" for i in kept]), strict=True))
    left_out = tuple(names[i] for i in others[MAX_METADATA_NAMES:])
    return Columns(address=address, caption=caption, metadata=metadata, left_out=left_out)


def unnamed_columns(cells: Sequence[str]) -> Columns | None:
    """The roles of the columns of a list without a header, from its first row; None if no cell is an address.

    Of two columns, the other one is the caption if it is text.
    """
    address = next((i for i, cell in enumerate(cells) if looks_like_address(cell)), None)
    if address is None:
        return None
    others = [i for i in range(len(cells)) if i != address]
    if len(others) == 1 and any(c.isalpha() for c in cells[others[0]]):
        return Columns(address=address, caption=others[0], metadata={})
    return Columns(address=address, caption=None, metadata={i: f"column_{i + 1}" for i in others[:MAX_METADATA_NAMES]})


def looks_like_address(cell: str) -> bool:
    """Whether a cell is a URL or a file name with a suffix, rather than the name of a column."""
    return bool(_ADDRESS.fullmatch(cell.strip()))


def metadata_name(name: str) -> str:
    """A column's name as that of metadata: in lower case, other characters than letters and digits as underscores."""
    return re.sub(r"\W+", "_", name.strip().lstrip("\ufeff").lower()).strip("_")[:_MAX_NAME_CHARS]


def metadata_names(names: Sequence[str]) -> list[str]:
    """A distinct name for each of these, in one spelling."""
    taken: set[str] = set()
    spelled = []
    for i, name in enumerate(names):
        spelled.append(_free(metadata_name(name) or f"column_{i + 1}", taken))
        taken.add(spelled[-1])
    for i, name in enumerate(spelled):
        canonical = _CANONICAL.get(_plain(name))
        if canonical and canonical not in taken:
            spelled[i] = canonical
            taken.add(canonical)
    return spelled


def captions_in(value: Any) -> Iterator[str]:
    """The captions of a cell: one text, or the texts of a list, also of one that is written as JSON or by Python.

    Raises UserError for objects that are not captions.
    """
    if isinstance(value, str):
        text = value.strip()
        listed = _listed(text) if text.startswith("[") else None
        if listed is not None:
            yield from captions_in(listed)
        elif not is_no_value(text):
            yield text
    elif isinstance(value, list | tuple):
        for item in value:
            yield from captions_in(item)
    elif isinstance(value, Mapping):
        caption = next((value[key] for key in ("text", "caption") if isinstance(value.get(key), str)), None)
        if caption is None or {"start_s", "end_s"} & value.keys():
            raise UserError(
                'its caption is an object; expected text or a list of texts (captions with times: see "Sidecars" in '
                "docs/captions.md)"
            )
        yield from captions_in(caption)
    elif (printed := metadata_text(value)) is not None:
        yield printed


def metadata_text(value: Any) -> str | None:
    """A cell as metadata: text without credentials; lists and objects as JSON. None for no value."""
    if isinstance(value, str):
        text = value.strip()
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, float):
        text = "" if math.isnan(value) else repr(value)
    elif isinstance(value, int | decimal.Decimal):
        text = str(value)
    elif isinstance(value, datetime.date | datetime.time):
        text = value.isoformat()
    elif isinstance(value, list | tuple | Mapping):
        text = json.dumps(value, ensure_ascii=False, default=str) if value else ""
    else:
        text = "" if value is None else str(value)
    if is_no_value(text):
        return None
    return redacted(text) if "://" in text else text


def is_no_value(text: str) -> bool:
    """Whether a text stands for a missing value: NULL, nan, None, N/A, an empty cell."""
    text = text.strip()
    return len(text) <= _NO_VALUE_CHARS and text.lower() in NO_VALUE


def _first(known: tuple[str, ...], plain: list[str]) -> int | None:
    return next((plain.index(name) for name in map(_plain, known) if name in plain), None)


def _plain(name: str) -> str:
    return metadata_name(name).replace("_", "")


_CANONICAL = {_plain(other): name for name, others in SYNONYMS.items() for other in others}


def _free(name: str, taken: set[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _listed(text: str) -> list[str | None] | None:
    """The texts of a list in JSON, or as Python or NumPy print one; None for any other text."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return _printed(text)
    if not isinstance(parsed, list) or not all(isinstance(item, str | None) for item in parsed):
        return None
    return parsed


def _printed(text: str) -> list[str | None] | None:
    """The texts of ['a', "b"]; read item by item, never evaluated."""
    if not text.endswith("]"):
        return None
    items: list[str | None] = []
    end = 1
    while item := _ITEM.match(text, end, len(text) - 1):
        single, double, _ = item.groups()
        quoted = single if single is not None else double
        items.append(None if quoted is None else _ESCAPE.sub(lambda m: _ESCAPED.get(m[1], m[1]), quoted))
        end = item.end()
    return items if items and not text[end:-1].strip() else None
