"""A private local Ray: its own token and folder, removed when the process ends.

Ray's servers listen on all interfaces; only processes that have the token, which only this user can read, can connect.
"""

import fcntl
import os
import resource
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from clipmill.errors import UserError
from pipelines.machine import SHARED_MEMORY, free_bytes, usable_memory_bytes
from pipelines.progress import note

_PREFIX = "clipmill-ray-"
_LONGEST_PATH_BYTES = 39
"""Maximum length of the folder's path: Ray appends up to 68 bytes, and the path of a socket is limited to 107."""
_OTHER_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
"""Where the folder is created if the path of the temporary folder is too long."""
_LEAST_ROOM_BYTES = 32 << 20
"""For sockets and logs."""
_OPEN_FILES, _OPEN_FILES_PER_CPU = 96, 4

_STORE_SHARE = 0.3
"""Share of the memory that Ray's object store takes by default."""
_LEAST_STORE_BYTES = 256 << 20
_MOST_STORE_ON_DISK_BYTES = 2 << 30
_FILLED = 0.95
"""Share of the free space that the object store may take."""


@contextmanager
def private_ray(num_cpus: int) -> Iterator[dict[str, Any]]:
    """Arguments for `ray.init`; sets the environment of Ray's processes for the duration of the block.

    The folder is removed at the end; that of a killed run, by the next run. Raises UserError if Ray cannot run on this
    machine: no folder for it, no room, too few open files.
    """
    place = ray_folder(usual=_temporary_folder())
    store_bytes = _store_bytes(place)
    check_open_files(num_cpus)
    _sweep(place)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))  # mode 0700
        lock = (folder / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        token = folder / "token"
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(_token())
    except OSError as error:
        raise UserError(f"cannot start Ray on this machine: no folder in {place}: {error.strerror}") from error
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONSAFEPATH": "1"}
    try:
        with lock, _environment(environment):
            yield {
                "address": "local",  # not one that somebody else has running on this machine
                "num_cpus": num_cpus,
                "object_store_memory": store_bytes,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": str(folder / "ray"),  # Ray opens its own folder to everyone, so it is one below
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ray_folder(usual: str, others: Sequence[str] = _OTHER_FOLDERS) -> str:
    """Where to create Ray's folder: the first of `usual` and `others` that is writable, has room, and whose path is
    short enough for sockets. Raises UserError if there is none.
    """
    reasons = {place: _unusable(place) for place in (usual, *others)}
    usable = next((place for place, reason in reasons.items() if reason is None), None)
    if usable is None:
        each = "; ".join(f"{place} {reason}" for place, reason in reasons.items())
        raise UserError(
            f"cannot start Ray on this machine: no folder for its sockets and logs ({each}): set TMPDIR to a writable "
            f"folder with {_LEAST_ROOM_BYTES >> 20} MiB of free space and a short path"
        )
    return usable


def _unusable(place: str) -> str | None:
    """Why Ray cannot use a folder; None if it can."""
    if _path_bytes(place) > _LONGEST_PATH_BYTES:
        return f"has a path of more than {_LONGEST_PATH_BYTES - _path_bytes('')} bytes"
    if not os.access(place, os.W_OK | os.X_OK):
        return "is not writable"
    if (room := free_bytes(place)) < _LEAST_ROOM_BYTES:
        return f"has {room >> 20} MiB of free space"
    return None


def object_store_bytes(*, memory: int, shared: int, disk: int) -> int | None:
    """Size of Ray's object store, given the memory, the free shared memory and the free space of Ray's folder in bytes.

    None for Ray's default, if that fits into the shared memory. Ray would otherwise ask for more than there is and
    move the store to disk, where it fails with SIGBUS once the disk is full. Containers have 64 MB of shared memory
    unless told otherwise, less than the 75 MiB that Ray requires, so the store has to be on disk there. Raises
    UserError if neither has room.
    """
    wanted = int(memory * _STORE_SHARE)
    if shared * _FILLED >= wanted:
        return None
    if shared * _FILLED >= _LEAST_STORE_BYTES:
        return int(shared * _FILLED)
    if disk * _FILLED < _LEAST_STORE_BYTES + _LEAST_ROOM_BYTES:
        raise UserError(
            f"cannot start Ray on this machine: its object store needs {_LEAST_STORE_BYTES >> 20} MiB, but "
            f"{SHARED_MEMORY} has {shared >> 20} MiB and the temporary folder {disk >> 20} MiB of free space: start "
            "the container with more shared memory (docker run --shm-size=2g) or set TMPDIR to a folder with more room"
        )
    return max(_LEAST_STORE_BYTES, min(wanted, _MOST_STORE_ON_DISK_BYTES, int(disk * _FILLED / 2)))


def least_open_files(num_cpus: int) -> int:
    """Files that a process must be able to open for Ray with so many CPUs.

    Of Ray's processes the raylet has most files open: 55, and 2 for each worker.
    """
    return _OPEN_FILES + num_cpus * _OPEN_FILES_PER_CPU


def check_open_files(num_cpus: int) -> None:
    """Raise UserError if a process may open too few files. The soft limit does not matter: Ray raises it."""
    least = least_open_files(num_cpus)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= least:
        return
    with suppress(ValueError, OSError):  # not permitted, unless this is root
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, least))
        return
    raise UserError(
        f"cannot start Ray on this machine: a process may open {hard} files, expected at least {least} for {num_cpus} "
        "CPUs: raise the limit (ulimit -Hn 65536, or docker run --ulimit nofile=65536)"
    )


def _store_bytes(place: str) -> int | None:
    shared = free_bytes(SHARED_MEMORY)
    size = object_store_bytes(memory=usable_memory_bytes(), shared=shared, disk=free_bytes(place))
    if size is not None and size > shared:
        note(
            f"{SHARED_MEMORY} has {shared >> 20} MiB of free space, so Ray's object store is on disk, in {place}. More "
            "shared memory is faster: docker run --shm-size=2g"
        )
    return size


def _temporary_folder() -> str:
    """The configured temporary folder; prints a note if TMPDIR names one that cannot be used."""
    try:
        usual = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            f"there is no writable temporary folder ({error.strerror}): make one of them writable, or set TMPDIR to "
            "a folder that is"
        ) from error
    given = os.environ.get("TMPDIR")
    if given and os.path.abspath(given) != os.path.abspath(usual):
        reason = "is full or not writable" if os.path.isdir(given) else "does not exist"
        note(f"TMPDIR is {given}, which {reason}; using {usual} for temporary files")
    return usual


def _path_bytes(place: str) -> int:
    """Length of the path of a folder in `place`: mkdtemp appends eight characters to the prefix."""
    return len(os.fsencode(place)) + len(_PREFIX) + 9


def _sweep(place: str) -> None:
    """Remove the folders of killed runs: those of this user whose lock is free."""
    for folder in Path(place).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or removed in this moment
            if folder.stat().st_uid == os.getuid() and not folder.is_symlink():
                with (folder / "lock").open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1)
def _token() -> str:
    """One per process: Ray keeps the first that it reads."""
    return secrets.token_hex(32)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*values, "RAY_AUTH_TOKEN")}
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update(values)
    _read_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_again()


def _read_again() -> None:
    """Ray reads its authentication mode when it is imported, and has no public way to read it again."""
    with suppress(ImportError, AttributeError):
        raylet: Any = import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
