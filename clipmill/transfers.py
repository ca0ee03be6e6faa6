"""Copy files to and from a store atomically, with retries."""

import fcntl
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipmill import storage
from clipmill.addresses import without_credentials
from clipmill.atomic import atomic_path
from clipmill.errors import UserError
from clipmill.ranges import REQUEST_BYTES, find_object, read_range
from clipmill.retries import RETRY_S, retried

_THREADS = 8


def upload(path: Path, url: str, *, retry_s: float = RETRY_S) -> None:
    """Copy a local file to `url`. Raises OSError for the local file; UserError if the store refuses it; RunStopped if
    the store does not answer."""
    fs, target = storage.filesystem(url)

    def attempt() -> None:
        try:
            with path.open("rb") as source, storage.atomic_write(fs, target) as file:
                shutil.copyfileobj(source, file, REQUEST_BYTES)
        except UserError as error:  # its cause shows whether the error is transient
            raise error.__cause__ or error from None

    retried(attempt, without_credentials(url), retry_s, action="write")


def download(url: str, path: Path, *, retry_s: float = RETRY_S) -> None:
    """Copy an object to a local file, several parts at a time. Raises FileNotFoundError; UserError without permission;
    RunStopped if the store does not answer; OSError for the local file."""
    stored = find_object(url, retry_s=retry_s)
    starts = range(0, stored.size_bytes, REQUEST_BYTES)
    with atomic_path(path) as temporary, temporary.open("wb") as file, ThreadPoolExecutor(_THREADS) as pool:

        def copy(start: int) -> None:
            content = read_range(stored, start, min(stored.size_bytes, start + REQUEST_BYTES), retry_s=retry_s)
            os.pwrite(file.fileno(), content, start)

        for _ in pool.map(copy, starts):
            pass


def download_once(url: str, path: Path) -> None:
    """As `download`, once per machine: concurrent processes wait for the first, then keep its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            download(url, path)
