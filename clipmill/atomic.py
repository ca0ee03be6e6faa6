"""Atomic writes to local files: a temporary file in the same folder is synced, then renamed."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".tmp"


def temporary_name(name: str) -> str:
    """A temporary name for the file `name` that no other process uses, on any machine."""
    return f".{name}.{uuid.uuid4().hex[:12]}{_SUFFIX}"


def is_temporary(name: str) -> bool:
    """Whether a file name is one of `temporary_name`: left by a killed writer, or in use."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def rename(source: str | Path, target: str | Path) -> None:
    """Rename a file and sync its folder, so that the rename survives a power failure."""
    os.replace(source, target)
    folder = os.open(os.path.dirname(os.path.abspath(target)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def atomic_path(path: Path, *, keep_suffix: bool = False) -> Iterator[Path]:
    """Yield a temporary path; the file at it is renamed to `path` when the block ends, and removed if it fails.

    Creates the folder. With `keep_suffix` the temporary name has the suffix of `path`, for writers that infer the
    format from it. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name) + (path.suffix if keep_suffix else ""))
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
