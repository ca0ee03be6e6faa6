"""What samples of other tools lack, counted while indexing and logged once for all of them.

Frame rate, size and motion bucket are computed from the frames where they are missing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from training.data_config import DataConfig
from training.metadata import sample_metadata
from training.note_names import CAPTION, ELEVATION, FAILED, MOTION, OTHER, OUTSIDE, REPEATED, SEVERAL, lacking
from training.sample_error import SampleError

if TYPE_CHECKING:
    from training.shards import ShardIndex

_KEYS = (CAPTION, MOTION, ELEVATION)
_DOWNLOADED = ("success", "ok")
_T = TypeVar("_T")


class Notes:
    """Notes on the samples of one shard. Memory depends only on the number of samples."""

    def __init__(self) -> None:
        self.several: set[str] = set()
        self._known: dict[str, int] = {}
        """Key -> bits of the `_KEYS` that it has."""
        self._failed: set[str] = set()
        self._left_out = {FAILED: 0, OTHER: 0}

    def look(self, key: str, members: Mapping[str, bytes]) -> None:
        """Note what the .txt or .json of a sample provides; nothing if damaged, which makes reading the sample fail."""
        try:
            metadata = sample_metadata(members)
        except SampleError:
            return
        missing = lacking(metadata)
        bits = sum(1 << i for i, name in enumerate(_KEYS) if name not in missing)
        self._known[key] = self._known.get(key, 0) | bits
        status = metadata.get("status")  # of video2dataset
        if isinstance(status, str) and status not in _DOWNLOADED:
            self._failed.add(key)

    def without_failures(self, samples: Mapping[str, Mapping[str, _T]]) -> dict[str, dict[str, _T]]:
        """The samples, without failed downloads and without files that are not samples."""
        kept = {}
        for key, files in samples.items():
            medium = any(name not in ("txt", "json") for name in files)
            if not files or (not medium and key in self._failed):
                self._left_out[FAILED if files else OTHER] += 1
            else:
                kept[key] = dict(files)
        return kept

    def counts(self, keys: Iterable[str]) -> dict[str, int]:
        """Note -> number of these samples, if above 0."""
        whole = list(keys)
        lacking = {name: sum(not self._known.get(key, 0) >> i & 1 for key in whole) for i, name in enumerate(_KEYS)}
        several = {SEVERAL: sum(key in self.several for key in whole)}
        return {name: count for name, count in (lacking | several | self._left_out).items() if count}


def sentences(index: "ShardIndex", config: DataConfig) -> list[str]:
    """Messages to log about samples of other tools, one per note."""
    motion = config.motion_default
    texts = {
        CAPTION: "they count as broken" if config.caption_required else "they train without text",
        MOTION: "it is measured from their frames, and 0 for pictures"
        if motion is None
        else f"data.motion_default={motion:g} is used",
        ELEVATION: "they count as broken" if config.elevation else "",
    }
    counts, total = _totals(index), len(index)
    said = [
        f"{counts[name]:,} of {total:,} samples have no {name}: {text}"
        for name, text in texts.items()
        if text and counts[name]
    ]
    if counts[SEVERAL]:
        said.append(f"{counts[SEVERAL]:,} of {total:,} samples have several videos or pictures: the first one is used")
    if counts[REPEATED]:
        said.append(f"{counts[REPEATED]:,} of {total:,} samples are listed more than once: their captions are combined")
    if counts[OUTSIDE]:
        said.append(f"{counts[OUTSIDE]:,} of {total:,} samples are files outside the folder of their list")
    if counts[FAILED]:
        said.append(f"skipped, since their JSON reports a failed download: {counts[FAILED]:,}")
    if counts[OTHER]:
        said.append(f"skipped, since they have no video, image, text or JSON: {counts[OTHER]:,}")
    return said


def required_but_missing(index: "ShardIndex", config: DataConfig) -> tuple[str, int] | None:
    """The required key that most samples of other tools lack, and how many lack it."""
    counts = _totals(index)
    required = {CAPTION: config.caption_required, ELEVATION: config.elevation}
    missing = [(counts[name], name) for name, is_required in required.items() if is_required and counts[name]]
    count, name = max(missing, default=(0, ""))
    return (name, count) if count else None


def _totals(index: "ShardIndex") -> Counter[str]:
    counts: Counter[str] = Counter()
    for shard in index.shards:
        counts.update(shard.noted)
    return counts
