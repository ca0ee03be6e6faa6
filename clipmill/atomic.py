"""Local files that are whole or absent: written under a temporary name in the same folder, synced, then renamed."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".tmp"


def temporary_name(name: str) -> str:
    """A name beside the file `name` that no other process uses, on whatever machine."""
    return f".{name}.{uuid.uuid4().hex[:12]}{_SUFFIX}"


def is_temporary(name: str) -> bool:
    """Whether a killed writer may have left a file of this name."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def rename(source: str | Path, target: str | Path) -> None:
    """Give a file its name, in a way that survives a power cut."""
    os.replace(source, target)
    folder = os.open(os.path.dirname(os.path.abspath(target)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def atomic_path(path: Path, *, keep_suffix: bool = False) -> Iterator[Path]:
    """A path to write to in the block; the file becomes `path` when the block ends, and is removed where it fails.

    Makes the folder. `keep_suffix`: for writers that choose a format by it. Raises OSError.
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
    """Write a small file, whole or not at all. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
