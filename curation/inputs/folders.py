"""Walk local folders and glob patterns; report videos, unreadable entries, and counts of skipped files.

Links are followed. Each folder is listed once, under its own path if that is part of the walk, so link loops terminate
and adding a link does not change existing paths.
"""

import fnmatch
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from clipmill.errors import SourceError, UserError, raise_if_stopped
from clipmill.local_files import check_not_of_kernel, open_regular
from clipmill.magic import HEAD_BYTES, content_of
from clipmill.storage import reason_of

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".mk3d", ".webm", ".avi", ".divx", ".insv"),
    *(".ts", ".m2ts", ".mts", ".m2t", ".mpg", ".mpeg", ".vob", ".flv", ".f4v", ".ogv", ".ogm", ".wmv", ".asf"),
    *(".mxf", ".rm", ".rmvb", ".dv", ".nut", ".gif", ".apng", ".ivf", ".y4m"),
    *(".h264", ".264", ".h265", ".265", ".hevc", ".m2v", ".m1v", ".obu"),
)
"""Suffixes that count as video when a folder is listed. Files that are named or listed explicitly can have any name."""
_WITHOUT_MEANING = ("", ".bin", ".dat", ".data", ".tmp", ".webp")
"""Suffixes of which the content of a local file says whether it is a video."""
_LOOKED_INTO_AT_MOST = 100_000

SIDECAR_SUFFIXES = (".json", ".txt")
"""Of captions beside a video: NAME.json, NAME.info.json, NAME.txt."""
_LONGEST_SUFFIX = 12
_MOST_SUFFIXES = 100
FOLDER_NOT_FILE = "this is a folder, not a file"


class Folder(NamedTuple):
    """A folder as named and with links resolved; resolving again at each level would be slow."""

    path: str
    real_path: str

    def child(self, name: str) -> "Folder":
        """The entry of this name, if it is not a link."""
        return Folder(f"{self.path.rstrip('/')}/{name}", f"{self.real_path.rstrip('/')}/{name}")


@dataclass(kw_only=True)
class Walk:
    """Result of a walk. Paths are as named, not resolved."""

    videos: list[str] = field(default_factory=list)
    problems: dict[str, SourceError] = field(default_factory=dict)
    """Unreadable folders, and folders without videos whose names end like a video's."""
    looked_into: int = 0
    """Number of files opened to learn what they are."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Number of skipped files by suffix; also "hidden", "without suffix", "other", and "repeated folders"."""


def is_video_name(path: str) -> bool:
    """Whether a name has a video suffix."""
    return posixpath.splitext(path)[1].lower() in VIDEO_SUFFIXES


def walk_folder(root: str) -> Walk:
    """Every video below a local folder, sorted by path; hidden files and folders are skipped."""
    walk, named_like_videos = Walk(), []
    seen: set[tuple[int, int]] = set()
    pending, linked = [Folder(root, os.path.realpath(root))], list[str]()
    while pending or linked:
        if not pending:
            linked.sort(reverse=True)
            link = linked.pop()
            pending.append(Folder(link, os.path.realpath(link)))
        folder = pending.pop()
        files = []
        for name, mode, is_link in _entries(folder, seen, walk):
            below = folder.child(name)
            if not stat.S_ISDIR(mode):
                files.append(name)
                continue
            named_like_videos += [below.path] if is_video_name(name) else []
            if is_link:
                linked.append(below.path)
            else:
                pending.append(below)
        found = {name for name in files if is_video_name(name) or _is_video_inside(folder.child(name).path, walk)}
        walk.videos += [folder.child(name).path for name in files if name in found]
        count_passed_over(walk.passed_over, files, found)
    if is_video_name(root):
        named_like_videos.append(root)
    walk.problems |= dict.fromkeys(without_videos(named_like_videos, walk.videos), _not_a_file())
    _drop_other_names(walk)
    walk.videos.sort()
    return walk


def without_videos(folders: Iterable[str], videos: Iterable[str]) -> list[str]:
    """The folders that contain none of the videos."""
    holding: set[str] = set()
    for path in videos:
        while (path := path.rpartition("/")[0]) and path not in holding:
            holding.add(path)
    return [folder for folder in folders if folder not in holding]


def _is_video_inside(path: str, walk: Walk) -> bool:
    """Whether a file whose name does not say so is a video."""
    if posixpath.splitext(path)[1].lower() not in _WITHOUT_MEANING or walk.looked_into >= _LOOKED_INTO_AT_MOST:
        return False
    walk.looked_into += 1
    try:
        with open_regular(path) as file:
            return content_of(file.read(HEAD_BYTES)) in ("video", "raw", "animated_webp")
    except (OSError, UserError) as error:
        raise_if_stopped(error)
        return False


def _drop_other_names(walk: Walk) -> None:
    """Drop the files without a name of a video that are also listed under one, as the blobs that links point to."""
    unnamed = [path for path in walk.videos if not is_video_name(path)]
    if unnamed:
        named = {_identity(path) for path in walk.videos if is_video_name(path)}
        dropped = {path for path in unnamed if _identity(path) in named}
        walk.videos = [path for path in walk.videos if path not in dropped]


def _identity(path: str) -> tuple[int, int]:
    try:
        file_stat = os.stat(path)
    except OSError:
        return (0, 0)
    return (file_stat.st_dev, file_stat.st_ino)


def count_passed_over(counter: Counter[str], names: Collection[str], videos: Collection[str] = ()) -> None:
    """Count the files of one folder that are neither videos, by their names or among `videos`, nor their captions."""
    stems = {posixpath.splitext(name)[0] for name in names if is_video_name(name) or name in videos}
    for name in names:
        if name in videos:
            continue
        stem, suffix = posixpath.splitext(name)
        suffix = suffix.lower()
        if not is_video_name(name) and not (suffix in SIDECAR_SUFFIXES and stem.removesuffix(".info") in stems):
            known = suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= _LONGEST_SUFFIX
            label = suffix if known else "other" if suffix else "without suffix"
            counter[label if label in counter or len(counter) < _MOST_SUFFIXES else "other"] += 1


def expand_pattern(pattern: str, walk: Walk) -> list[str]:
    """Local paths that match a pattern of *, ?, [] and **, sorted; hidden names only match a pattern with the dot.

    If the last part has no suffix (such as * or clip_*), matching files that are not videos count as skipped. `walk`
    collects problems and counts.
    """
    *parts, last = pattern.split("/")[1:]
    level = [Folder("/", "/")]
    for part in parts:
        level = [folder for folder in _matching(level, part, walk) if os.path.isdir(folder.path)]
    matched = sorted(dict.fromkeys(folder.path for folder in _matching(level, last, walk)))
    if posixpath.splitext(last)[1]:
        return matched
    folders = {path for path in matched if os.path.isdir(path)}
    count_passed_over(walk.passed_over, [path for path in matched if path not in folders])
    return [path for path in matched if path in folders or is_video_name(path)]


def _matching(folders: Iterable[Folder], part: str, walk: Walk) -> Iterator[Folder]:
    for folder in folders:
        if part == "**":
            yield from _folders_below(folder, walk)
        elif not any(c in part for c in "*?["):
            path = folder.child(part).path
            if os.path.lexists(path):
                yield Folder(path, os.path.realpath(path) if os.path.islink(path) else folder.child(part).real_path)
        else:
            for name, _, is_link in _entries(folder, set(), walk, hidden=part.startswith(".")):
                if fnmatch.fnmatchcase(name, part):
                    below = folder.child(name)
                    yield Folder(below.path, os.path.realpath(below.path)) if is_link else below


def _folders_below(root: Folder, walk: Walk) -> Iterator[Folder]:
    """`root` and every folder below it; linked folders are not entered, or ** would match them repeatedly."""
    waiting, seen = [root], set[tuple[int, int]]()
    while waiting:
        yield (folder := waiting.pop())
        entries = _entries(folder, seen, walk)
        waiting += [folder.child(name) for name, mode, is_link in entries if stat.S_ISDIR(mode) and not is_link]


def _entries(
    folder: Folder, seen: set[tuple[int, int]], walk: Walk, *, hidden: bool = False
) -> list[tuple[str, int, bool]]:
    """(name, mode of the target, whether it is a link) of the entries of one folder, by name. Problems go to `walk`."""
    listed = []
    try:
        check_not_of_kernel(f"{folder.real_path}/")
        folder_stat = os.stat(folder.path)
        if (folder_stat.st_dev, folder_stat.st_ino) in seen:
            walk.passed_over["repeated folders"] += 1
            return []
        seen.add((folder_stat.st_dev, folder_stat.st_ino))
        with os.scandir(folder.path) as entries:
            for entry in entries:
                if entry.name.startswith(".") and not hidden:
                    walk.passed_over["hidden"] += 1
                else:
                    listed.append((entry.name, _mode(entry), entry.is_symlink()))
    except UserError as error:
        walk.problems[folder.path] = SourceError("unreadable", str(error))
    except OSError as error:
        raise_if_stopped(error)
        walk.problems[folder.path] = SourceError("unreadable", f"folder cannot be read: {reason_of(error)}")
    return sorted(listed)


def _mode(entry: "os.DirEntry[str]") -> int:
    """Mode of the entry's target; 0 for a broken link."""
    try:
        if entry.is_symlink():
            return entry.stat().st_mode
        return stat.S_IFDIR if entry.is_dir() else stat.S_IFREG
    except OSError:
        return 0


def _not_a_file() -> SourceError:
    return SourceError("unreadable", FOLDER_NOT_FILE)
