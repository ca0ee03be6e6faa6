"""Every way in which native code can fail ends as a SourceError in the parent; no child is left behind."""

import ctypes
import errno
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from clipmill.errors import RunStopped, SourceError, UserError
from curation.scan import wire
from curation.scan.isolation import Isolated
from curation.video.decode import Limits

ROOT = Path(__file__).parents[3]
WITHOUT_MAIN_GUARD = """
print("started", flush=True)
from curation.scan.isolation import Isolated
from tests.curation.scan.test_isolation import LIMITS, main_module
with Isolated(LIMITS) as isolated:
    print(isolated.run(main_module))
"""
LIMITS = Limits(timeout_s=60, memory_bytes=1 << 30)
OVER_THE_LIMIT = 3 << 29


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated]:
    with Isolated(LIMITS) as isolated:
        yield isolated


def divided(dividend: int, divisor: int) -> tuple[int, int]:
    return divmod(dividend, divisor)


def child_pid() -> int:
    return os.getpid()


def environment() -> dict[str, str]:
    return dict(os.environ)


def fork_and_stay() -> int:
    """A process that native code started: it holds none of our descriptors and outlives its parent."""
    pid = os.fork()
    if not pid:
        os.closerange(0, 256)
        while True:
            time.sleep(1000)
    return pid


def write_file(path: Path, size_bytes: int) -> None:
    try:
        path.write_bytes(b"x" * size_bytes)
    except OSError as error:
        raise SourceError("crashed", errno.errorcode[error.errno or 0]) from error


def many_bytes(size_bytes: int) -> bytes:
    return b"x" * size_bytes


def fail_to_allocate_the_answer() -> bytes:
    raise_on_encoding = wire.msgpack.packb

    def packb(*_: object, **__: object) -> bytes:
        wire.msgpack.packb = raise_on_encoding
        raise MemoryError

    wire.msgpack.packb = packb  # type: ignore[attr-defined]
    return b""


def something_else() -> int:
    return "a sentence"  # type: ignore[return-value]


def answer_with(content: bytes) -> int:
    """What a decoder that was taken over can do: speak to the parent itself."""
    connection = socket.socket(fileno=os.dup(int(sys.argv[2])))
    wire.send(connection, content)
    time.sleep(1000)
    return 0


def answer_half() -> int:
    connection = socket.socket(fileno=os.dup(int(sys.argv[2])))
    connection.sendall(b"\0\0\0\0\0\0\1\0 and then nothing")
    time.sleep(1000)
    return 0


def close_the_connection_and_leave(code: int) -> None:
    os.close(int(sys.argv[2]))
    time.sleep(0.2)
    os._exit(code)


def fill_the_disk() -> None:
    raise RunStopped("the disk is full")


def opencv_threads() -> int:
    return cv2.getNumThreads()


def main_module() -> str:
    return getattr(sys.modules["__main__"], "__file__", "none")


def reject(kind: str, message: str) -> None:
    raise SourceError(kind, message)


def reject_the_request() -> None:
    raise UserError("no such preset")


class Unpicklable(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


def raise_unpicklable() -> None:
    raise Unpicklable(1, 2)


def read_address_zero() -> None:
    ctypes.string_at(0)


def leave(code: int) -> None:
    os._exit(code)


def die_in_a_used_child(marker: Path) -> str:
    """As if an earlier source had damaged the heap: dies at the first attempt only."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return "fine in a fresh child"


def sleep_for_ever() -> None:
    while True:
        time.sleep(1000)


def spin_holding_the_interpreter() -> None:
    """A regular expression that backtracks for ages in C, without ever releasing the GIL."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def fill_python() -> int:
    return len(bytearray(OVER_THE_LIMIT))


def fill_numpy() -> int:
    return int(np.ones(OVER_THE_LIMIT, np.uint8)[-1])


def fill_opencv() -> int:
    return len(cv2.resize(np.zeros((8, 8), np.uint8), (1 << 15, OVER_THE_LIMIT >> 15)))


def fill_ffmpeg() -> int:
    return len([av.VideoFrame(8192, 8192, "yuv444p") for _ in range(OVER_THE_LIMIT >> 27)])


def fill_ffmpeg_and_blame_the_file() -> None:
    try:
        fill_ffmpeg()
    except av.FFmpegError as error:
        raise SourceError("decode_error", "the container is damaged") from error


def test_a_result_comes_back_and_the_child_serves_again(isolated: Isolated) -> None:
    assert isolated.run(divided, 17, 5) == (3, 2)
    first = isolated.run(child_pid)
    assert first != os.getpid()
    assert isolated.run(child_pid) == first


@pytest.mark.slow
def test_the_child_does_not_run_the_main_script_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_MAIN_GUARD)
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    started, child_main = done.stdout.splitlines()
    assert started == "started"
    assert child_main != str(script)


def test_opencv_has_one_thread(isolated: Isolated) -> None:
    assert isolated.run(opencv_threads) == 1


@pytest.mark.parametrize("kind", ["too_large", "timeout"])
def test_a_rejected_source_keeps_its_kind(isolated: Isolated, kind: str) -> None:
    with pytest.raises(SourceError, match="16384x16384") as caught:
        isolated.run(reject, kind, "frames of 16384x16384 pixels")
    assert caught.value.kind == kind


def test_a_mistake_of_the_user_stays_one(isolated: Isolated) -> None:
    with pytest.raises(UserError, match="no such preset"):
        isolated.run(reject_the_request)


def test_any_other_exception_says_what_and_where(isolated: Isolated) -> None:
    with pytest.raises(SourceError, match=r"Unpicklable in test_isolation.py:\d+: 1 and 2") as caught:
        isolated.run(raise_unpicklable)
    assert caught.value.kind == "crashed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "args", "said"),
    [(read_address_zero, (), "SIGSEGV"), (leave, (3,), "code 3"), (leave, (0,), "code 0")],
)
def test_a_dying_child_is_a_crash_and_is_replaced(
    isolated: Isolated, function: object, args: tuple[int, ...], said: str
) -> None:
    before = isolated.run(child_pid)
    with pytest.raises(SourceError, match=said) as caught:
        isolated.run(function, *args)
    assert caught.value.kind == "crashed"
    assert isolated.run(child_pid) != before


@pytest.mark.slow
def test_only_a_fresh_child_convicts_a_source(isolated: Isolated, tmp_path: Path) -> None:
    isolated.run(child_pid)
    assert isolated.run(die_in_a_used_child, tmp_path / "marker") == "fine in a fresh child"


@pytest.mark.slow
def test_a_child_that_died_between_two_calls_is_replaced(isolated: Isolated) -> None:
    before = isolated.run(child_pid)
    os.kill(before, signal.SIGKILL)
    assert isolated.run(child_pid) != before


@pytest.mark.slow
@pytest.mark.parametrize("fill", [fill_python, fill_numpy, fill_opencv, fill_ffmpeg, fill_ffmpeg_and_blame_the_file])
def test_more_memory_than_allowed(isolated: Isolated, fill: object) -> None:
    with pytest.raises(SourceError, match="more than 1 GiB") as caught:
        isolated.run(fill)
    assert caught.value.kind == "out_of_memory"


@pytest.mark.slow
@pytest.mark.parametrize("hang", [sleep_for_ever, spin_holding_the_interpreter])
def test_a_hanging_child_is_killed(hang: object) -> None:
    with Isolated(Limits(timeout_s=0.2)) as isolated:
        before = isolated.run(child_pid)
        with pytest.raises(SourceError, match=r"after 0.2 s") as caught:
            isolated.run(hang)
        assert caught.value.kind == "timeout"
        assert isolated.run(child_pid) != before
    assert gone(before)


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and Python then leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_an_interrupted_call_leaves_no_answer_behind(isolated: Isolated) -> None:
    isolated.run(child_pid)
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        isolated.run(sleep_for_ever)
    assert isolated.run(divided, 17, 5) == (3, 2)


def test_a_child_that_cannot_start_convicts_no_source() -> None:
    with (
        Isolated(Limits(memory_bytes=64 << 20)) as isolated,
        pytest.raises(RunStopped, match=r"could not start: .*limits.memory_bytes = 67,108,864"),
    ):
        isolated.run(child_pid)


def test_a_function_of_the_main_script_is_refused(isolated: Isolated) -> None:
    def function() -> None: ...

    function.__module__ = "__main__"
    with pytest.raises(ValueError, match="__main__"):
        isolated.run(function)


@pytest.mark.slow
def test_leaving_the_context_stops_a_busy_child() -> None:
    with Isolated(LIMITS) as isolated:
        pid = isolated.run(child_pid)
    assert gone(pid)


PARENT = """
from curation.scan.isolation import Isolated
from tests.curation.scan.test_isolation import LIMITS, child_pid, spin_holding_the_interpreter
isolated = Isolated(LIMITS)
print(isolated.run(child_pid), flush=True)
isolated.run(spin_holding_the_interpreter)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_child_outlives_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    """The script has no main guard, and the child is busy in C when its parent dies."""
    errors = tmp_path / "stderr"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", PARENT],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        ) as parent,
    ):
        assert parent.stdout is not None
        line = parent.stdout.readline()
        assert line, errors.read_text()
        child = int(line)
        if how == signal.SIGINT:
            os.killpg(parent.pid, how)  # what Ctrl-C in a terminal does
        else:
            parent.send_signal(how)
    assert gone(child)


UNPICKLED: list[str] = []


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return UNPICKLED.append, ("by the parent",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Bomb()),
        b"",
        b"\xc1",
        b"\x81\xa5value\xa1x",  # a string where an int is declared
        b"\x81\xadsource_error\xa1x",
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million items
        b"\x91" * 5000,
    ],
)
def test_an_answer_that_is_not_one_is_refused_and_the_child_replaced(isolated: Isolated, content: bytes) -> None:
    before = isolated.run(child_pid)
    with pytest.raises(SourceError, match="invalid response from the scan process") as caught:
        isolated.run(answer_with, content)
    assert caught.value.kind == "crashed"
    assert not UNPICKLED
    assert isolated.run(child_pid) != before


def test_an_answer_of_another_type_is_refused(isolated: Isolated) -> None:
    with pytest.raises(SourceError, match="something_else"):
        isolated.run(something_else)


@pytest.mark.slow
def test_an_answer_has_at_most_so_many_bytes_and_its_deadline_holds_half_way() -> None:
    with Isolated(Limits(answer_bytes=1 << 20, timeout_s=0.5)) as isolated:
        assert len(isolated.run(many_bytes, 1 << 19)) == 1 << 19
        with pytest.raises(SourceError, match=r"limits.answer_bytes") as caught:
            isolated.run(many_bytes, 1 << 21)
        assert caught.value.kind == "too_large"
        with pytest.raises(SourceError, match=r"after 0.5 s") as caught:
            isolated.run(answer_half)
        assert caught.value.kind == "timeout"


def test_memory_that_runs_out_while_the_answer_is_encoded(isolated: Isolated) -> None:
    with pytest.raises(SourceError) as caught:
        isolated.run(fail_to_allocate_the_answer)
    assert caught.value.kind == "out_of_memory"


def test_an_exit_code_survives_a_connection_that_ends_before_the_process(isolated: Isolated) -> None:
    with pytest.raises(SourceError, match="code 7"):
        isolated.run(close_the_connection_and_leave, 7)


def test_a_failing_machine_stops_the_run_and_convicts_no_source(isolated: Isolated) -> None:
    with pytest.raises(RunStopped, match="the disk is full"):
        isolated.run(fill_the_disk)


def test_the_child_writes_no_large_file(tmp_path: Path) -> None:
    with Isolated(Limits(spool_bytes=8 << 20)) as isolated:
        isolated.run(write_file, tmp_path / "small", 1 << 20)
        with pytest.raises(SourceError, match="EFBIG"):
            isolated.run(write_file, tmp_path / "large", 9 << 20)


def test_what_the_child_started_ends_with_it() -> None:
    with Isolated(LIMITS) as isolated:
        grandchild = isolated.run(fork_and_stay)
    assert gone(grandchild)


@pytest.mark.slow
def test_only_the_child_of_a_store_sees_its_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    monkeypatch.setenv("TMPDIR", "/tmp")
    with Isolated(LIMITS) as isolated:
        local, pid = isolated.run(environment), isolated.run(child_pid)
        assert "secret" not in " ".join(local.values())
        assert local["TMPDIR"] == "/tmp"
        remote = isolated.run_on("s3://bucket/a.mp4", environment)
        assert (remote["AWS_SECRET_ACCESS_KEY"], "OPENAI_API_KEY" in remote) == ("secret", False)
        assert isolated.run_on("/videos/a.mp4", child_pid) == pid


def gone(pid: int) -> bool:
    """Waits until the process has ended; if it never does, the time limit of the test says so."""
    with suppress(ProcessLookupError, FileNotFoundError):
        while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
            time.sleep(0.01)
    return True
