"""Captions supplied with a video: from a list, a sidecar file, or the container's metadata (paper 3.1).

Each caption records its source, so that training can sample sources with its own probabilities.
"""

import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipmill.addresses import redacted, without_credentials
from clipmill.config import unknown_name
from clipmill.errors import RunStopped, UserError
from curation.inputs.caption import Caption, TimedCaption, clean
from curation.inputs.sidecars import beside, read_sidecar
from curation.inputs.source_metadata import (
    METADATA_NAMES,
    json_object,
    kind_of,
    metadata_of_info,
    metadata_of_json,
    title_of_info,
)
from curation.inputs.stats import Source

MAX_CHARS = 20_000
"""Maximum length of a caption. In the joined view every clip of a video has the captions of the whole video."""
MAX_PER_CLIP = 32
MAX_CLIP_BYTES = 64 << 10
"""Maximum bytes of all captions of a clip. DuckDB reads 2,048 rows at a time with all their captions."""
MAX_SOURCE_BYTES = 16 << 20
"""Maximum bytes of all captions of a source, counted once per clip that has them."""
_NO_ROOM = "captions dropped: the text exceeds the limit for the clips of one video; shorten its captions"
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
"""Most descriptive tag first; comments are often written by programs."""
_MADE_WITH = re.compile(
    r"(was )?(made|created|edited|encoded|recorded|captured|exported|generated|rendered|produced|processed)"
    r" (by|with|using|in|on|via|from) (the )?",
    re.IGNORECASE,
)
_MAX_EDITION = 40
_EDITION_WORDS = {"app", "beta", "build", "core", "edition", "free", "release", "trial", "version"}
_ENCODERS = r"lav[cf]\s?\d|libav|ffmpeg|x26[45]\b|handbrake|mencoder|xvid|divx|gpac|mp4box|mkvmerge|mkvtoolnix"
_ENCODER = re.compile(_ENCODERS, re.IGNORECASE)
_PROGRAM = re.compile(
    _ENCODERS + r"|adobe|premiere (pro|elements|rush)|after effects|media encoder|final cut|imovie|quicktime|davinci"
    r"|avid (media|xpress|pinnacle)|magix|sony vegas|vegas (pro|movie)|(windows (live )?)?movie maker|microsoft"
    r"|clipchamp|vlc\b|obs\b|streamlabs|xsplit|bandicam|camtasia|fraps\b|screenflow|snagit|kdenlive|openshot|shotcut"
    r"|lightworks|blender\b|filmora|wondershare|powerdirector|cyberlink|pinnacle studio|nero (video|vision|recode)"
    r"|capcut|inshot|kinemaster|vivavideo|videoshow|vllo\b|canva\b|animoto|renderforest|gopro|dji\b|insta360|iphone"
    r"|tiktok|instagram|snapchat|youtube|google (photos|pixel|clips|meet|veo)|picasa|zoom\b|webex|synthesia|runwayml"
    r"|sora\b|veo\b|pika labs|kling\b|stable video diffusion|yt-dlp|any video converter|freemake|vsdc|hitfilm",
    re.IGNORECASE,
)
"""Programs and devices that write their names into files; matched at the beginning of a text."""
_ADDRESS = re.compile(r"vid:\w+$|https?://\S+$|www\.\S+$", re.IGNORECASE)
_PLACEHOLDERS = {
    *("untitled", "unknown", "unnamed", "no title", "title", "video", "movie", "clip", "output", "default", "test"),
    *("none", "null", "n/a", "sequence", "timeline", "my movie", "new project", "untitled project"),
}


@dataclass(frozen=True, kw_only=True)
class Supplied:
    """Captions and metadata supplied with a video."""

    captions: list[TimedCaption]
    metadata: dict[str, str]


def read_supplied(source: Source, tags: Mapping[str, str]) -> Supplied:
    """Every caption and all metadata supplied with `source`: from its list, the sidecars NAME.json, NAME.txt and
    NAME.info.json (of yt-dlp), and its container's tags.

    Unreadable captions become captions with an error; empty ones are skipped. Of several values for the same metadata,
    the first in this order is kept. Costs one request per sidecar name. Only raises RunStopped, if this machine is out
    of resources.
    """
    captions = [TimedCaption(caption=c) for text in source.captions for c in _captions("list", text)]
    metadata: dict[str, str] = {}
    for suffix, parse, describe in (
        (".json", _parse_json, metadata_of_json),
        (".txt", _parse_text, None),
        (".info.json", _parse_info, metadata_of_info),
    ):
        try:
            text = read_sidecar(source, suffix)
            if text is not None:
                captions += parse(text)
                metadata = (describe(text) if describe else {}) | metadata
        except RunStopped:
            raise
        except UserError as error:
            name = posixpath.basename(without_credentials(beside(source.location, suffix)))
            failed = Caption.failed("sidecar", str(clean(f"{name}: {redacted(str(error))}")))
            captions.append(TimedCaption(caption=failed))
    captions += [TimedCaption(caption=c) for c in _from_metadata(source.uri, tags)]
    return Supplied(captions=list(dict.fromkeys(captions)), metadata=metadata | dict(source.metadata))


def captions_of_clips(captions: Sequence[TimedCaption], clips_s: Sequence[tuple[float, float]]) -> list[list[Caption]]:
    """The captions of each clip of a source, given its start and end; at most MAX_SOURCE_BYTES in total.

    A source stores each caption once, but a long one is repeated for each clip in the joined view and in shards. Beyond
    the limit, each clip gets an equal share, and an error for what did not fit.
    """
    timeline = _Timeline(captions)
    chosen = [timeline.between(start_s, end_s) for start_s, end_s in clips_s]
    distinct = {caption for clip in chosen for caption in clip}
    size_bytes = {caption: len((caption.text or caption.error or "").encode()) for caption in distinct}
    total_bytes = sum(size_bytes[caption] for clip in chosen for caption in clip)
    share = MAX_SOURCE_BYTES // max(1, len(chosen)) if total_bytes > MAX_SOURCE_BYTES else MAX_CLIP_BYTES
    return [_fitting(clip, size_bytes, min(share, MAX_CLIP_BYTES)) for clip in chosen]


def captions_between(captions: Sequence[TimedCaption], start_s: float, end_s: float) -> list[Caption]:
    """The captions of a clip: those of the whole video, and those that cover at least half of the clip.

    Timed captions follow other cuts than ours. A caption that covers most of the clip describes its main content; one
    that covers less describes something else, or only a moment.
    """
    return _Timeline(captions).between(start_s, end_s)


class _Timeline:
    """Captions of a source, indexed for queries by clip: ten thousand captions times ten thousand clips are 10^8
    pairs."""

    def __init__(self, captions: Sequence[TimedCaption]) -> None:
        numbers: dict[Caption, int] = {}
        self._numbers = np.array([numbers.setdefault(timed.caption, len(numbers)) for timed in captions], np.int64)
        self._captions = list(numbers)
        self._start_s = np.array([-math.inf if timed.start_s is None else timed.start_s for timed in captions])
        self._end_s = np.array([math.inf if timed.end_s is None else timed.end_s for timed in captions])

    def between(self, start_s: float, end_s: float) -> list[Caption]:
        """See `captions_between`."""
        covered_s = np.minimum(self._end_s, end_s) - np.maximum(self._start_s, start_s)
        covering = covered_s >= _MIN_COVER * (end_s - start_s)
        numbers = list(dict.fromkeys(self._numbers[covering].tolist()))
        chosen = [self._captions[number] for number in numbers[: MAX_PER_CLIP + 1]]
        if len(numbers) > MAX_PER_CLIP:
            error = f"{len(numbers)} captions for one clip; only the first {MAX_PER_CLIP} were kept"
            chosen[MAX_PER_CLIP:] = [Caption.failed(chosen[MAX_PER_CLIP].source, error)]
        return chosen


def _fitting(captions: list[Caption], size_bytes: Mapping[Caption, int], room_bytes: int) -> list[Caption]:
    """The captions that fit into the limit, in order, and an error for the first that does not."""
    fitting: list[Caption] = []
    left_out: list[Caption] = []
    for caption in captions:
        if size_bytes[caption] <= room_bytes:
            room_bytes -= size_bytes[caption]
            fitting.append(caption)
        else:
            left_out.append(caption)
    return fitting + [Caption.failed(caption.source, _NO_ROOM) for caption in left_out[:1]]


def _captions(source: str, text: str) -> Iterator[Caption]:
    """One caption, or none if there is no text."""
    line = clean(text)
    if line and len(line) > MAX_CHARS:
        yield Caption.failed(source, f"a caption of {len(line):,} characters exceeds the limit of {MAX_CHARS:,}")
    elif line:
        yield Caption(source=source, text=line)


def _parse_text(text: str) -> Iterator[TimedCaption]:
    """The whole file is one caption, regardless of line breaks."""
    for caption in _captions("sidecar", text):
        yield TimedCaption(caption=caption)


def _parse_json(text: str) -> Iterator[TimedCaption]:
    if not clean(text):
        return
    try:
        content = json_object(text)
    except UserError as error:
        raise UserError(f"{error}; {_JSON_FORMS}") from error
    entries = content.get("captions")
    if not isinstance(entries, list | None):
        raise UserError(f'"captions" is {kind_of(entries)}; {_JSON_FORMS}')
    if entries is None and not any(key in content for key in (*_TEXT_KEYS, *METADATA_NAMES)):
        raise UserError(f"none of the keys captions, {', '.join(_TEXT_KEYS)} found; {_JSON_FORMS}")
    single_keys = _TEXT_KEYS if entries is None else _TEXT_KEYS[:1]
    single = [content[key] for key in single_keys if content.get(key)][:1]
    entries = [*single, *(entries or [])]
    if len(entries) > _MAX_ENTRIES:
        raise UserError(f"{len(entries):,} captions exceed the limit of {_MAX_ENTRIES:,}")
    for number, entry in enumerate(entries, start=1):
        try:
            yield from _parse_entry(entry)
        except UserError as error:
            yield TimedCaption(caption=Caption.failed("sidecar", str(clean(f"caption {number}: {error}"))))


def _parse_info(text: str) -> Iterator[TimedCaption]:
    """The title, which its uploader wrote: less reliable than a caption, and a source of its own."""
    for caption in _captions("title", title_of_info(text) or ""):
        yield TimedCaption(caption=caption)


def _parse_entry(entry: Any) -> Iterator[TimedCaption]:
    entry = {"text": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict):
        raise UserError(f"got {kind_of(entry)}; {_JSON_FORMS}")
    for key in entry:
        if key not in _ENTRY_KEYS:
            raise UserError(unknown_name("key", key[:100], _ENTRY_KEYS))
    text, source = entry.get("text"), entry.get("source")
    source = "sidecar" if source is None else source
    if not isinstance(text, str | None):
        raise UserError(f'"text" is {kind_of(text)}, expected text')
    if not isinstance(source, str) or not _SOURCE_NAME.fullmatch(source):
        raise UserError('expected "source" to be up to 64 letters, digits, - and _')
    start_s, end_s = _seconds(entry, "start_s"), _seconds(entry, "end_s")
    if end_s is not None and end_s <= (start_s or 0):
        raise UserError(f"expected its end after its start, got start {start_s or 0:g} s and end {end_s:g} s")
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
    raise UserError(f'"{key}" is {str(value)[:40]!r}, expected seconds, 0 or more')


def _from_metadata(uri: str, metadata: Mapping[str, str]) -> Iterator[Caption]:
    """The first tag that describes the content."""
    tags = {key.lower().removeprefix("com.apple.quicktime."): value for key, value in metadata.items()}
    for tag in _METADATA_TAGS:
        text = clean(tags.get(tag, ""))
        if text and not _worthless(text, uri):
            yield from _captions("metadata", text)
            return


def _worthless(text: str, uri: str) -> bool:
    """Whether a tag was written by a program, is a mere name, or has an unknown encoding."""
    if "\ufffd" in text or _names_a_program(text) or _ADDRESS.match(text) or text.lower() in _PLACEHOLDERS:
        return True
    if not any(c.isalpha() for c in text):
        return True
    name = posixpath.basename(uri)
    if _letters(text) in (_letters(name), _letters(posixpath.splitext(name)[0])):
        return True
    # IMG_0042, 2019-07-21T10.mov, dQw4w9WgXcQ; a language without spaces is not meant.
    return text.isascii() and " " not in text and not text.isalpha()


def _names_a_program(text: str) -> bool:
    """Whether the text is "made with PROGRAM" or an encoder's name, with at most a version or an edition after it."""
    made_with = _MADE_WITH.match(text)
    name = text[made_with.end() :] if made_with else text
    program = (_PROGRAM if made_with else _ENCODER).match(name)
    if program is None:
        return False
    edition = name[program.end() :]
    return len(edition) <= _MAX_EDITION and all(
        word in _EDITION_WORDS or not (word.isalpha() and word.islower()) for word in edition.split()
    )


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())
