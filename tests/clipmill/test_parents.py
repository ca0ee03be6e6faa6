"""Children of a process that is killed end, whatever they are doing."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipmill.parents import end_with_parent
from tests.processes import end, gone_within, is_running

_ROOT = Path(__file__).resolve().parents[2]


def wait_forever() -> None:
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(600)


def main(method: str) -> None:
    """Start two children, which print their process ids."""
    context = multiprocessing.get_context(method)
    for _ in range(2):
        context.Process(target=wait_forever, daemon=True).start()
    time.sleep(600)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_a_killed_process_end(method: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import main; main({method!r})"],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},  # a local Ray sets PYTHONSAFEPATH
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        children = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(is_running, children))
        parent.kill()
        try:
            assert gone_within(20, children)
        finally:
            end(children)


def test_a_process_without_parent_goes_on() -> None:
    end_with_parent()
