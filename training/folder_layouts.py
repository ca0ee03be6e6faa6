"""Find the tars in a folder of another tool: directly in it, or in the layouts of the Hugging Face Hub."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipmill.errors import UserError

_LOG = logging.getLogger("clipmill.data")
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test",
           "evaluation": "test", "validation": "validation", "valid": "validation", "val": "validation",
           "dev": "validation"}  # fmt: skip
"""Words that the Hub interprets as splits in names of files and folders."""
_PATTERNS = ("*", "data/*", "train/*", "data/train/*")
_WORD = re.compile(r"[a-z]+")


def tars_in(folder: str) -> list[str]:
    """The tars in a folder, in its `data/`, `train/` or `data/train/`, whichever has some first; sorted.

    If they belong to several splits, named as on the Hub (data/train-00000.tar, test/0.tar), only `train` is used; the
    others are logged.
    """
    return next((_training_split(tars, folder) for tars in _levels(folder, (".tar",)) if tars), [])


def check_not_compressed(entry: str) -> None:
    """Raise UserError for a compressed tar or a folder with one: its samples cannot be read at their offset."""
    is_packed = entry.endswith(COMPRESSED_TARS) and os.path.isfile(entry)
    packed = [entry] if is_packed else next((tars for tars in _levels(entry, COMPRESSED_TARS) if tars), [])
    if packed:
        raise UserError(
            f"{packed[0]} is compressed, and samples are read at their offset in a plain tar: decompress it first (for "
            "example, gunzip)"
        )


def _levels(folder: str, suffixes: tuple[str, ...]) -> Iterator[list[str]]:
    for pattern in _PATTERNS:
        paths = sorted(path for path in Path(folder).glob(pattern) if path.name.endswith(suffixes))
        yield [str(path) for path in paths if not path.name.startswith(".") and path.is_file()]


def _training_split(tars: Sequence[str], folder: str) -> list[str]:
    splits = {path: _split_of(os.path.relpath(path, folder)) for path in tars}
    if "train" not in splits.values():
        return list(tars)
    others = Counter(split for split in splits.values() if split not in ("train", None))
    if others:
        counts = ", ".join(f"{count} of {split}" for split, count in sorted(others.items()))
        _LOG.warning("%s: reading only the train split, not the others (%s)", folder, counts)
    return [path for path, split in splits.items() if split in ("train", None)]


def _split_of(path: str) -> str | None:
    """The split named by the last matching word of a relative path."""
    words = [_SPLITS[word] for word in _WORD.findall(path.lower().removesuffix(".tar")) if word in _SPLITS]
    return words[-1] if words else None
