"""Captions that come with a video: from a list, from a sidecar file, from the container's metadata (paper 3.1).

Each caption keeps the name of its source, so that training can draw them with its own probabilities.
"""

import codecs
import errno
import json
import math
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curation.config import unknown_name
from curation.errors import UserError
from curation.sources import Source, _locate
from curation.storage import explained, is_local

MAX_CHARS = 20_000
"""Of one caption. Every clip of a video carries the captions of the whole video."""
MAX_PER_CLIP = 32
_MAX_SIDECAR_BYTES = 4 << 20
_MAX_ENTRIES = 10_000
_MIN_COVER = 0.5

_JSON_FORMS = (
    'expected {"caption": "text"}, {"captions": ["text", ...]} or '
    '{"captions": [{"text": "text", "start_s": 1.0, "end_s": 4.0, "source": "name"}, ...]}'
)
_TEXT_KEYS = ("caption", "text", "description", "title")
_ENTRY_KEYS = ["text", "start_s", "end_s", "source"]
_SOURCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_METADATA_TAGS = ("description", "synopsis", "title", "comment")
"""What says most of the content comes first; comments are often left by programs."""
_PROGRAMS = re.compile(
    r"(made|created|edited|encoded|recorded|captured|exported|generated|rendered|produced) (by|with|using|in) .{,40}$"
    r"|(lav[cf]\d|x26[45]\b|handbrake|ffmpeg).{,40}$|vid:\w+$|https?://\S+$|www\.\S+$",
    re.IGNORECASE,
)
_PLACEHOLDERS = {
    *("untitled", "unknown", "unnamed", "no title", "title", "video", "movie", "clip", "output", "default", "test"),
    *("none", "null", "n/a", "sequence", "timeline", "my movie", "new project", "untitled project"),
}


NOTHING_TO_MERGE = "nothing to merge"
"""How the error of a merged caption begins where nothing failed: trying again would change nothing."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption of a clip. A caption that failed has no text, and says why."""

    source: str
    """Where it comes from: list, sidecar, metadata, or the captioner's name (coca, video, merged)."""
    text: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class TimedCaption:
    """A caption and the part of the video that it describes; the whole of it where both bounds are None.

    Times are seconds from the first frame of the video, as a player shows them. One bound alone
    means from the beginning, or to the end.
    """

    caption: Caption
    start_s: float | None = None
    end_s: float | None = None


def read_captions(source: Source, metadata: Mapping[str, str]) -> list[TimedCaption]:
    """Every caption that came with `source`: from its list, NAME.json and NAME.txt beside it, its container's tags.

    `metadata` holds the container's tags. What cannot be read becomes a caption with an error; a caption without
    text is none. Costs one attempt per sidecar name, and raises nothing of its own.

    A store that hides what it does not list answers "forbidden" for a file that is not there: outside the local disk
    such a sidecar counts as not there.
    """
    found = [TimedCaption(caption=c) for text in source.captions for c in _captions("list", text)]
    found += _from_sidecar(source.uri, ".json", _parse_json)
    found += _from_sidecar(source.uri, ".txt", _parse_text)
    found += [TimedCaption(caption=c) for c in _from_metadata(source.uri, metadata)]
    return list(dict.fromkeys(found))


def captions_between(captions: Sequence[TimedCaption], start_s: float, end_s: float) -> list[Caption]:
    """The captions of a clip: those of the whole video, and those whose time covers at least half of the clip's.

    Half, because whoever wrote a timed caption found other cuts than we did. One that covers most of the clip tells
    what is mostly seen in it; one that covers less describes something else, or a moment of it.
    """
    chosen = list(dict.fromkeys(timed.caption for timed in captions if _covers(timed, start_s, end_s)))
    if len(chosen) > MAX_PER_CLIP:
        error = f"{len(chosen)} captions for one clip, the first {MAX_PER_CLIP} were taken"
        chosen[MAX_PER_CLIP:] = [Caption(source=chosen[MAX_PER_CLIP].source, error=error)]
    return chosen


def clean(text: str) -> str | None:
    """`text` on one line, without control characters and halves of characters; None if nothing visible is left.

    What joins emoji or sets the direction of writing stays.
    """
    kept = (c for c in text.removeprefix("\ufeff") if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"))
    line = " ".join("".join(kept).split())
    return line if any(unicodedata.category(c) not in ("Cf", "Zs") for c in line) else None


def _covers(timed: TimedCaption, start_s: float, end_s: float) -> bool:
    if timed.start_s is None and timed.end_s is None:
        return True
    first_s = max(start_s, timed.start_s if timed.start_s is not None else start_s)
    last_s = min(end_s, timed.end_s if timed.end_s is not None else end_s)
    return last_s - first_s >= _MIN_COVER * (end_s - start_s)


def _captions(source: str, text: str) -> Iterator[Caption]:
    """One caption, or none where there is no text."""
    line = clean(text)
    if line and len(line) > MAX_CHARS:
        yield Caption(source=source, error=f"a caption of {len(line):,} characters, at most {MAX_CHARS:,} are taken")
    elif line:
        yield Caption(source=source, text=line)


def _from_sidecar(uri: str, suffix: str, parse: Callable[[str], Iterator[TimedCaption]]) -> list[TimedCaption]:
    address = _beside(uri, suffix)
    try:
        content = _read(address)
        return [] if content is None else list(parse(_decode(content)))
    except MemoryError:
        raise
    except Exception as error:  # untrusted bytes, and whatever client a store has: a caption is not worth a source
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        name = posixpath.basename(address)
        return [TimedCaption(caption=Caption(source="sidecar", error=clean(f"{name}: {reason}")))]


def _beside(uri: str, suffix: str) -> str:
    """The address of the same name with another suffix; a web address keeps its query."""
    query = ""
    if uri.startswith(("http://", "https://")):
        uri, mark, query = uri.partition("?")
        query = mark + query
    return posixpath.splitext(uri)[0] + suffix + query


def _read(address: str) -> bytes | None:
    """The content; None where there is no such file. One request on an object store."""
    fs, path = _locate(address)
    try:
        with explained("read", fs, path):
            if is_local(fs) and not stat.S_ISREG(os.stat(path).st_mode):
                raise UserError("this is a folder, a device or a pipe, not a file")
            content: bytes = fs.cat_file(path, start=0, end=_MAX_SIDECAR_BYTES + 1)
    except FileNotFoundError:
        return None
    except UserError as error:
        if _says_nothing_is_there(error.__cause__, local=is_local(fs)):
            return None
        raise
    if len(content) > _MAX_SIDECAR_BYTES:
        raise UserError(f"more than {_MAX_SIDECAR_BYTES >> 20} MiB; captions are expected in it, nothing else")
    return content


def _says_nothing_is_there(error: BaseException | None, *, local: bool) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    if local:
        return number == errno.ENAMETOOLONG  # .json is longer than .mp4
    forbidden, range_not_satisfiable = 403, 416  # the latter: the file is empty
    status = getattr(error, "status", None)
    empty = "InvalidRange" in str(error) or "not satisfiable" in str(error)
    return isinstance(error, PermissionError) or status in (forbidden, range_not_satisfiable) or empty


def _decode(content: bytes) -> str:
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"not {error.encoding.upper()} at byte {error.start:,} ({error.reason}); save it as UTF-8"
        ) from error


def _parse_text(text: str) -> Iterator[TimedCaption]:
    """The whole file is one caption, however many lines it has."""
    for caption in _captions("sidecar", text):
        yield TimedCaption(caption=caption)


def _parse_json(text: str) -> Iterator[TimedCaption]:
    if not clean(text):
        return
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"no valid JSON ({error}); {_JSON_FORMS}") from error
    if not isinstance(content, dict):
        raise UserError(f"came {_kind(content)}; {_JSON_FORMS}")
    entries = content.get("captions")
    if not isinstance(entries, list | None):
        raise UserError(f'"captions" is {_kind(entries)}; {_JSON_FORMS}')
    if entries is None and not any(key in content for key in _TEXT_KEYS):
        raise UserError(f"none of the keys captions, {', '.join(_TEXT_KEYS)} is there; {_JSON_FORMS}")
    single_keys = _TEXT_KEYS if entries is None else _TEXT_KEYS[:1]
    single = [content[key] for key in single_keys if content.get(key)][:1]
    entries = [*single, *(entries or [])]
    if len(entries) > _MAX_ENTRIES:
        raise UserError(f"{len(entries):,} captions, at most {_MAX_ENTRIES:,} are taken")
    for number, entry in enumerate(entries, start=1):
        try:
            yield from _parse_entry(entry)
        except UserError as error:
            yield TimedCaption(caption=Caption(source="sidecar", error=clean(f"caption {number}: {error}")))


def _parse_entry(entry: Any) -> Iterator[TimedCaption]:
    entry = {"text": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict):
        raise UserError(f"came {_kind(entry)}; {_JSON_FORMS}")
    for key in entry:
        if key not in _ENTRY_KEYS:
            raise UserError(unknown_name("key", key[:100], _ENTRY_KEYS))
    text, source = entry.get("text"), entry.get("source")
    source = "sidecar" if source is None else source
    if not isinstance(text, str | None):
        raise UserError(f'"text" is {_kind(text)}, expected text')
    if not isinstance(source, str) or not _SOURCE_NAME.fullmatch(source):
        raise UserError('"source" is expected to be up to 64 letters, digits, - and _')
    start_s, end_s = _seconds(entry, "start_s"), _seconds(entry, "end_s")
    if end_s is not None and end_s <= (start_s or 0):
        raise UserError(f"it ends at {end_s:g} s, which is not after its start at {start_s or 0:g} s")
    for caption in _captions(source, text or ""):
        if caption.error:  # it is the file that is at fault, not the captioner that is named in it
            raise UserError(caption.error)
        yield TimedCaption(caption=caption, start_s=start_s, end_s=end_s)


def _seconds(entry: Mapping[str, Any], key: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e9 and math.isfinite(value):
        return float(value)
    raise UserError(f'"{key}" is {str(value)[:40]!r}, expected seconds from 0 on')


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _from_metadata(uri: str, metadata: Mapping[str, str]) -> Iterator[Caption]:
    """The first tag that says something of the content."""
    tags = {key.lower().removeprefix("com.apple.quicktime."): value for key, value in metadata.items()}
    for tag in _METADATA_TAGS:
        text = clean(tags.get(tag, ""))
        if text and not _worthless(text, uri):
            yield from _captions("metadata", text)
            return


def _worthless(text: str, uri: str) -> bool:
    """Left by a program, a mere name, or in an encoding that was not understood."""
    if "\ufffd" in text or _PROGRAMS.match(text) or text.lower() in _PLACEHOLDERS:
        return True
    if not any(c.isalpha() for c in text):
        return True
    name = posixpath.basename(uri)
    if _letters(text) in (_letters(name), _letters(posixpath.splitext(name)[0])):
        return True
    # IMG_0042, 2019-07-21T10.mov, dQw4w9WgXcQ; a language without spaces is not meant.
    return text.isascii() and " " not in text and not text.isalpha()


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())
