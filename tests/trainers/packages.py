"""Trainers' packages for tests: installed into a folder of their own, since they pin other versions than clipmill."""

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

_INSTALL_S = 180


def installed(*requirements: str) -> Path:
    """A folder with these packages, without what they depend on. It is kept for later runs of the tests.

    Skips the test where they cannot be installed, as without a network.
    """
    name = sha256(" ".join(requirements).encode()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipmill" / "trainers" / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", temporary]
        try:
            done = subprocess.run(
                [*command, *requirements], capture_output=True, text=True, timeout=_INSTALL_S, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"{requirements[0]} could not be installed within {_INSTALL_S} s")
        if done.returncode:
            pytest.skip(f"{requirements[0]} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        with suppress(OSError):  # another worker of the tests was faster
            Path(temporary).rename(folder)
            Path(temporary).mkdir()  # for the block to remove
    return folder
