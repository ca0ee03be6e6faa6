"""List inputs: files, folders, globs, any fsspec URL, or lists with captions and metadata.

Errors of inputs from lists or folders are values on their `Source`, not exceptions. Every request to a store has a
deadline, and unresponsive hosts are skipped after a few attempts.
"""

import difflib
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import fsspec

from clipmill.addresses import without_credentials
from clipmill.archives import WITHOUT_RANDOM_ACCESS, archive_kind
from clipmill.config import Config
from clipmill.errors import SourceError, UserError
from clipmill.storage import address, archive_filesystem, call, explained, is_local, shown, within
from clipmill.text import is_unicode
from curation.inputs.folders import (
    FOLDER_NOT_FILE,
    SIDECAR_SUFFIXES,
    VIDEO_SUFFIXES,
    Walk,
    count_passed_over,
    expand_pattern,
    is_video_name,
    walk_folder,
    without_videos,
)
from curation.inputs.listed import listed
from curation.inputs.lists import LIST_SUFFIXES, OTHER_TABLES, Reading, is_list_name
from curation.inputs.stats import Candidate, Patience, Source, locate, open_source, stat_candidate, stat_source

__all__ = ["LIST_SUFFIXES", "VIDEO_SUFFIXES", "Listing", "Source", "list_sources", "open_source", "stat_source"]

_CAPTIONS_AT_MOST = 100
"""Maximum number of listed captions kept per source; a clip has fewer."""
_STATS_IN_FLIGHT = 32
_LISTING_DEADLINE_S = 3600.0
_NAMED_AT_MOST = 5


class InputsConfig(Config):
    """Listing of inputs."""

    archives_in_lists: bool = False
    """Whether rows of a list may name files inside archives (`zip://a.mp4::videos.zip`). Set it for lists from sources
    that you trust; on the command line, archives are always accepted."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All sources of the given inputs, and counts of other files in their folders."""

    sources: tuple[Source, ...]
    passed_over: Mapping[str, int]
    """Number of skipped files in folders: by suffix, or "hidden", "without suffix", "other", "repeated folders"."""
    notes: tuple[str, ...] = ()
    """How each list was understood, and what was not kept."""

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def passed_over_sentence(self, most: int = 8) -> str:
        """For example "12 .txt, 3 .jpg", most common first; empty if nothing was skipped. Safe to print."""
        common = sorted(self.passed_over.items(), key=lambda item: (-item[1], item[0]))
        rest = sum(count for _, count in common[most:])
        return ", ".join([f"{count:,} {name}" for name, count in common[:most]] + ([f"{rest:,} more"] if rest else []))


def list_sources(inputs: Sequence[str], config: InputsConfig | None = None) -> Listing:
    """Every input once, in the order given, with all its captions and metadata; folders and globs sorted by name.

    Of several values for the same metadata of a source, the first is kept. Raises UserError for an input that does not
    exist (except rows of a list), a list without an address column, an unknown protocol, or a folder or list that
    cannot be read.
    """
    walked = _Walked(config=config or InputsConfig())
    sources_by_uri: dict[str, Source] = {}
    captions: dict[str, dict[str, None]] = {}
    metadata: dict[str, dict[str, str]] = {}
    missing = []
    for candidate, source in _stat_all(_expand(_without_sidecars(inputs, walked), walked)):
        if candidate.explicit and source.error is not None and source.error.kind == "missing":
            path = candidate.path if is_local(candidate.fs) else None
            missing.append(_not_there(source.uri, source.error, path))
        sources_by_uri.setdefault(source.uri, source)
        texts = captions.setdefault(source.uri, {})
        for text in source.captions:
            if len(texts) < _CAPTIONS_AT_MOST:
                texts[text] = None
            else:
                walked.captions_dropped += text not in texts
        values = metadata.setdefault(source.uri, {})
        for name, value in source.metadata.items():
            walked.other_values[name] += values.setdefault(name, value) != value
    if missing:
        more = f"\nand {len(missing) - _NAMED_AT_MOST} more" if len(missing) > _NAMED_AT_MOST else ""
        raise UserError("\n".join(missing[:_NAMED_AT_MOST]) + more)
    sources = tuple(
        replace(source, captions=tuple(captions[uri]), metadata=metadata[uri]) for uri, source in sources_by_uri.items()
    )
    return Listing(sources=sources, passed_over=dict(walked.passed_over), notes=walked.notes())


@dataclass(kw_only=True)
class _Walked:
    """What is said of the inputs beside their sources."""

    config: InputsConfig
    passed_over: Counter[str] = field(default_factory=Counter)
    readings: list[Reading] = field(default_factory=list)
    captions_dropped: int = 0
    other_values: Counter[str] = field(default_factory=Counter)
    """Metadata -> rows with another value than an earlier row of the same source."""

    def notes(self) -> tuple[str, ...]:
        notes = [reading.sentence() for reading in self.readings]
        if self.captions_dropped:
            notes.append(
                f"{self.captions_dropped:,} captions beyond {_CAPTIONS_AT_MOST} of the same source were dropped"
            )
        repeated = [f"{name} ({rows:,} rows)" for name, rows in self.other_values.items() if rows]
        if repeated:
            notes.append(
                f"metadata that differs between rows of the same source, the first is kept: {', '.join(repeated)}"
            )
        return tuple(filter(None, notes))


def _without_sidecars(inputs: Sequence[str], walked: _Walked) -> Iterator[str]:
    """The inputs without the files that lie beside a video among them, as a shell expands `folder/*`.

    Captions (.txt, .json) are read with the video; other files (thumbnails, subtitles) are counted as skipped.
    """
    stems = {posixpath.splitext(given)[0] for given in inputs if is_video_name(given)}
    for given in inputs:
        dots = [i for i, c in enumerate(given) if c == "." and i > given.rfind("/") + 1]
        beside = not is_video_name(given) and any(given[:i] in stems for i in dots)
        if not beside or (is_list_name(given) and not given.endswith(SIDECAR_SUFFIXES)):
            yield given
        elif not given.endswith(SIDECAR_SUFFIXES):
            count_passed_over(walked.passed_over, [posixpath.basename(given)])


def _expand(inputs: Iterable[str], walked: _Walked) -> Iterator[Candidate]:
    for given in inputs:
        fs, path = locate(given)
        with explained("read", fs, path):
            yield from _expand_local(fs, path, walked) if is_local(fs) else _expand_url(fs, path, walked)


def _expand_local(fs: fsspec.AbstractFileSystem, path: str, walked: _Walked) -> Iterator[Candidate]:
    if "\0" in path:
        raise UserError(f"{path!r} is not a valid path: it contains a null character")
    walk = Walk()
    if os.path.isdir(path):
        walk = walk_folder(path)
        yield from (Candidate(fs, video, root=path) for video in walk.videos)
    elif os.path.lexists(path) or not _is_pattern(path):
        yield from _expand_file(fs, path, walked, explicit=True)
    else:
        yield from _expand_pattern(fs, path, walk, walked)
    walked.passed_over.update(walk.passed_over)
    yield from (Candidate(fs, problem, error=error) for problem, error in sorted(walk.problems.items()))


def _expand_pattern(fs: fsspec.AbstractFileSystem, pattern: str, walk: Walk, walked: _Walked) -> Iterator[Candidate]:
    paths = expand_pattern(pattern, walk)
    if not paths and not walk.problems:
        raise UserError(f"no file matches {pattern}")
    fixed = pattern[: min(pattern.index(c) for c in "*?[" if c in pattern)]
    root = posixpath.dirname(fixed)
    for path in paths:
        if not os.path.isdir(path):
            yield from _expand_file(fs, path, walked, root=root)
        else:
            below = walk_folder(path)
            yield from (Candidate(fs, video, root=root) for video in below.videos)
            walk.passed_over.update(below.passed_over)
            walk.problems |= below.problems


def _expand_url(fs: fsspec.AbstractFileSystem, path: str, walked: _Walked) -> Iterator[Candidate]:
    """A web address is a single file: listing a folder over HTTP would download the whole page."""
    web = address(fs, path).startswith(("http://", "https://"))
    if not web and _is_pattern(path) and not _ask(fs, "exists", path):
        paths = sorted(_ask(fs, "glob", path))
        if not paths:
            raise UserError(f"no file matches {without_credentials(address(fs, path))}")
        folders = {match for match in paths if _ask(fs, "isdir", match)}
        files = set(paths) - folders
        if not posixpath.splitext(path)[1]:  # as in `expand_pattern`
            count_passed_over(walked.passed_over, files)
            files = set(filter(is_video_name, files))
        for match in paths:
            if match in folders:
                yield from _list_folder(fs, match, walked.passed_over)
            elif match in files:
                yield from _expand_file(fs, match, walked)
    elif not web and _ask(fs, "isdir", path):
        yield from _list_folder(fs, path, walked.passed_over)
    else:
        yield from _expand_file(fs, path, walked, explicit=True)


def _expand_file(
    fs: fsspec.AbstractFileSystem, path: str, walked: _Walked, *, root: str = "", explicit: bool = False
) -> Iterator[Candidate]:
    """A file that was named: a video, or the videos in a list or an archive."""
    name = path if is_local(fs) else path.partition("?")[0]
    if is_list_name(name):
        reading = Reading(name=shown(fs, path))
        walked.readings.append(reading)
        yield from listed(fs, path, reading, archives=walked.config.archives_in_lists)
    elif kind := archive_kind(name):
        yield from _list_folder(archive_filesystem(fs, path, kind), "", walked.passed_over)
    elif name.lower().endswith(WITHOUT_RANDOM_ACCESS):
        raise UserError(f"{shown(fs, path)}: expected a .zip or an uncompressed .tar; unpack it, and give the folder")
    elif name.lower().endswith(OTHER_TABLES):
        raise UserError(f"{shown(fs, path)}: unsupported list format; export it as CSV (UTF-8), JSON lines or Parquet")
    else:
        yield Candidate(fs, path, root=root, explicit=explicit)


def _is_pattern(path: str) -> bool:
    return any(c in path for c in "*?[")


def _ask(fs: fsspec.AbstractFileSystem, method: str, path: str, **options: Any) -> Any:
    try:
        return within(_LISTING_DEADLINE_S, fs, lambda: call(fs, method, path, **options))
    except RecursionError as error:
        raise UserError(f"{without_credentials(address(fs, path))} is nested too deeply to be listed") from error


def _list_folder(fs: fsspec.AbstractFileSystem, folder: str, passed_over: Counter[str]) -> Iterator[Candidate]:
    entries = _ask(fs, "find", folder, detail=True, withdirs=True)
    names: dict[str, list[str]] = {}
    videos, named_like_videos = [], [folder]
    for path in sorted(entries):
        inside = path.removeprefix(folder).strip("/").split("/")
        if any(part.startswith(".") for part in inside):
            passed_over["hidden"] += 1
        elif entries[path]["type"] == "directory":
            named_like_videos.append(path)
        elif inside != [""]:
            names.setdefault(posixpath.dirname(path), []).append(inside[-1])
            videos += [path] if is_video_name(path) else []
    for files in names.values():
        count_passed_over(passed_over, files)
    for path in videos:
        error = (
            None if is_unicode(path) else SourceError("unreadable", "its name in the archive is not UTF-8; rename it")
        )
        yield Candidate(fs, path, info=entries[path], error=error)
    for path in without_videos(dict.fromkeys(filter(is_video_name, named_like_videos)), videos):
        yield Candidate(fs, path, error=SourceError("unreadable", FOLDER_NOT_FILE))


def _stat_all(candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Source]]:
    """Query sizes and versions concurrently: a list may contain a million addresses of an object store."""
    patience, pool = Patience(), ThreadPoolExecutor(_STATS_IN_FLIGHT)
    waiting = iter(candidates)
    try:
        while batch := list(islice(waiting, 16 * _STATS_IN_FLIGHT)):
            yield from zip(batch, pool.map(lambda candidate: stat_candidate(candidate, patience), batch), strict=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _not_there(uri: str, error: SourceError, path: str | None) -> str:
    """Error message for an input that does not exist; for a `path` of this machine with the nearest existing name."""
    if path is None:
        return f"{uri} does not exist: {error.message}"
    if os.path.lexists(path):
        return f"{uri}: {error.message}"
    folder, wanted = posixpath.split(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder, wanted = posixpath.split(folder)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, 10_000)]
    except OSError:
        names = []
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f" Did you mean {posixpath.join(folder, near[0])!r}?" if near else f" {folder} has no {wanted!r}."
    return f"{uri} does not exist.{hint}"
