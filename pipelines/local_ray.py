"""A private local Ray: its own token and folder, removed when the process ends.

Ray's servers listen on all interfaces; only processes that have the token, which only this user can read, can connect.
"""

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from clipmill.errors import UserError

_PREFIX = "clipmill-ray-"
_LONGEST_PATH = 40
"""Bytes of the folder's own path: Ray puts some 60 behind it, and the name of a socket has 107 at most."""


@contextmanager
def private_ray(num_cpus: int) -> Iterator[dict[str, Any]]:
    """Arguments for `ray.init`, and for the length of the block the environment that Ray's processes need.

    The folder is removed at the end; one of a run that was killed, by the next run. Raises UserError where no folder
    can be made.
    """
    place = _place()
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
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": str(folder / "ray"),  # Ray opens its own folder to everyone, so it is one below
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place() -> str:
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) + len(_PREFIX) + 9 <= _LONGEST_PATH else "/tmp"


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
