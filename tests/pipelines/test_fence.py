"""Which run owns a folder, and when a second one may take it."""

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipmill.errors import RunStopped, UserError
from pipelines import fence
from pipelines.fence import HEARTBEAT_FILE, RUN_FILE, owned, refuse_if_running, refuse_unless_silent

ELSEWHERE = {"machine": "another boot pid:[1]", "started": "1"}


def leave(folder: Path, *, silent_s: float, process: dict[str, str], pid: int = 77, **heartbeat: object) -> None:
    """The files of another run, which was last heard of so many seconds ago."""
    beat = (datetime.now(UTC) - timedelta(seconds=silent_s)).isoformat()
    since = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    owner = {"run": "other", "host": "node7", "pid": pid, "process": process, "since": since}
    (folder / RUN_FILE).write_text(json.dumps(owner))
    (folder / HEARTBEAT_FILE).write_text(json.dumps({"run": "other", "beat": beat} | heartbeat))


def test_a_run_on_another_host_with_a_fresh_heartbeat_is_left_alone(tmp_path: Path):
    leave(tmp_path, silent_s=20, process=ELSEWHERE)
    with (
        pytest.raises(
            UserError, match=r"node7, pid 77, since \d{4}-\d\d-\d\d .* last heartbeat 2\d s ago.*--take-over"
        ),
        owned(str(tmp_path)),
    ):
        pass
    assert json.loads((tmp_path / RUN_FILE).read_text())["run"] == "other"
    with owned(str(tmp_path), take_over=True) as fence:
        fence.check()


@pytest.mark.parametrize(
    "heartbeat", [{"silent_s": 500.0}, {"silent_s": 1.0, "ended": True}, {"silent_s": 1.0, "run": "an older one"}]
)
def test_a_run_that_is_silent_or_has_ended_is_replaced(tmp_path: Path, heartbeat: dict):
    leave(tmp_path, process=ELSEWHERE, **heartbeat)
    with owned(str(tmp_path)) as fence:
        fence.check()


def test_on_the_same_machine_the_process_decides_whatever_the_clock_says(tmp_path: Path):
    run = [sys.executable, "-c", f"""
import os, signal
from pipelines.fence import owned
with owned({str(tmp_path)!r}):
    print("owned", flush=True)
    signal.pause()
"""]  # fmt: skip
    process = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    long_ago = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    owner = json.loads((tmp_path / RUN_FILE).read_text())
    (tmp_path / HEARTBEAT_FILE).write_text(json.dumps({"run": owner["run"], "beat": long_ago}))
    with pytest.raises(UserError, match=f"on {socket.gethostname()}, pid {process.pid}, since"):
        refuse_if_running(str(tmp_path))
    process.kill()
    process.wait()
    with owned(str(tmp_path)):
        pass
    leave(tmp_path, silent_s=0, process=owner["process"] | {"started": "1"}, pid=os.getpid())
    refuse_if_running(str(tmp_path))  # the number was given to another process since


def test_a_run_that_ended_with_an_error_is_no_obstacle_in_the_same_process(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), owned(str(tmp_path)):
        raise ZeroDivisionError
    with owned(str(tmp_path)), pytest.raises(UserError, match="in use"):
        refuse_if_running(str(tmp_path))
    refuse_if_running(str(tmp_path))


def test_an_overtaken_run_neither_commits_nor_marks_the_other_as_ended(tmp_path: Path):
    with owned(str(tmp_path), take_over=True) as new:
        pass
    with owned(str(tmp_path)) as old, owned(str(tmp_path), take_over=True) as new:
        with pytest.raises(RunStopped, match=f"another run now owns .*pid {os.getpid()}"):
            old.check()
        new.check()
    with pytest.raises(RunStopped):
        old.check()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"run": 3}', '{"run": "x", "process": 3, "since": [1]}'])
def test_files_that_are_damaged_or_of_an_older_release_are_no_obstacle(tmp_path: Path, content: str):
    for name in (RUN_FILE, HEARTBEAT_FILE):
        (tmp_path / name).write_text(content)
    with owned(str(tmp_path)) as fence:
        fence.check()


def test_an_object_store_holds_a_fence_too(s3_url: str):
    with owned(f"{s3_url}/dataset") as fence:
        fence.check()
        with pytest.raises(UserError, match="in use"):
            refuse_if_running(f"{s3_url}/dataset")
    refuse_if_running(f"{s3_url}/dataset")


def test_a_folder_with_a_relative_name_is_the_same_one_in_tasks_that_run_elsewhere(tmp_path: Path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with owned("out") as fence:
        monkeypatch.chdir("elsewhere")
        fence.check()
    assert json.loads((tmp_path / "out" / HEARTBEAT_FILE).read_text())["ended"]


def test_a_silent_run_elsewhere_is_waited_for_until_it_beats_again_or_counts_as_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fence, "_POLL_S", 0.01)
    leave(tmp_path, silent_s=119.5, process=ELSEWHERE)
    said: list[str] = []
    refuse_unless_silent(str(tmp_path), said.append)
    (waiting,) = said
    assert "node7, pid 77" in waiting

    leave(tmp_path, silent_s=60, process=ELSEWHERE)

    def beats_again(_: str) -> None:
        leave(tmp_path, silent_s=0, process=ELSEWHERE)

    with pytest.raises(UserError, match=r"node7.*last heartbeat 0 s ago.*--take-over"):
        refuse_unless_silent(str(tmp_path), beats_again)
    with owned(str(tmp_path), take_over=True), pytest.raises(UserError, match=f"pid {os.getpid()}"):
        refuse_unless_silent(str(tmp_path), said.append)
    refuse_unless_silent(str(tmp_path), said.append)
    assert said == [waiting]
