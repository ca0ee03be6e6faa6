"""Atomic writes to local files: a temporary file in the same folder is synced, then renamed."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SUFFIX = ".tmp"


def temporary_name(name: str) -> str:
    """A temporary name for the file `name` that no other process uses, on any machine."""
    return f".{name}.{uuid.uuid4().hex[:12]}{_SUFFIX}"


def is_temporary(name: str) -> bool:
    """Whether a file name is one of `temporary_name`: left by a killed writer, or in use."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def create_file(path: str | Path, content: bytes) -> None:
    """Write a small file atomically unless `path` exists: of several writers, one succeeds. Creates the folder.

    Raises FileExistsError; OSError.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, temporary_name(name))
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
        _sync_folder(folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def rename(source: str | Path, target: str | Path) -> None:
    """Rename a file and sync its folder, so that the rename survives a power failure."""
    os.replace(source, target)
    _sync_folder(os.path.dirname(os.path.abspath(target)))


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


def _sync_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
