"""What is wrong with this machine stops a run; it is never said of a source."""

import errno
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest

from clipmill import Scorer, column
from clipmill.errors import RunStopped, SourceError, UserError, raise_if_stopped
from curation.inputs.captions import read_supplied
from curation.inputs.sources import list_sources, open_source, stat_source
from curation.scan.isolation import Isolated
from curation.scores.base import ClipView
from curation.scores.rows import score_rows
from curation.video.decode import Limits
from pipelines.cli_shared import FAILED, run_command


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Every file that is opened in the block is one too many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Below 3 are the standard streams. A higher limit would let a thread that closes a socket make room for another.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: list_sources([str(folder)]),
        lambda folder: list_sources([f"{folder}/*.mp4"]),
        lambda folder: open_source(str(folder / "a.mp4")),
        lambda folder: read_supplied(stat_source(str(folder / "a.mp4")), {}),
    ],
    ids=["folder", "pattern", "video", "sidecar"],
)
def test_without_descriptors_a_run_stops(tmp_path: Path, ask: Callable[[Path], object]):
    for name in ("a.mp4", "a.txt"):
        (tmp_path / name).write_bytes(b"x")
    ask(tmp_path)
    with no_descriptor_left(), pytest.raises(RunStopped, match=r"Too many open files.*ulimit -n"):
        ask(tmp_path)


def test_without_descriptors_a_run_stops_at_an_address(tmp_path: Path):
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}/a.mp4"
        assert stat_source(address).error is not None, "it answers, with 501"
        with no_descriptor_left(), pytest.raises(RunStopped, match="Too many open files"):
            stat_source(address)
    finally:
        server.shutdown()
        server.server_close()


def fail_with(number: int) -> None:
    raise OSError(number, os.strerror(number))


@pytest.mark.slow
def test_in_a_child_as_well():
    with Isolated(Limits(timeout_s=60, memory_bytes=1 << 30)) as isolated:
        with pytest.raises(RunStopped, match="Too many open files"):
            isolated.run(fail_with, errno.EMFILE)
        with pytest.raises(SourceError, match="unexpected OSError"):
            isolated.run(fail_with, errno.EINVAL)


def chained(*errors: BaseException) -> BaseException:
    for outer, inner in pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENFILE, "x"), "Too many open files in system"),
        (chained(FileNotFoundError("x"), ValueError(), OSError(errno.ENOBUFS, "x")), "No buffer space"),
        (chained(ValueError(), RuntimeError("can't start new thread")), "thread.*ulimit -u"),
        (chained(UserError("x"), RunStopped("the disk is full")), "the disk is full"),
    ],
)
def test_the_cause_may_be_deep_down(error: BaseException, message: str):
    with pytest.raises(RunStopped, match=message):
        raise_if_stopped(error)


def test_other_errors_pass_and_a_circle_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    raise_if_stopped(first)
    raise_if_stopped(OSError(errno.EACCES, "x"))


class Raises(Scorer):
    """Raises what it is given, whatever the clip."""

    name = "raises"
    columns = (column("raises", pa.float32(), "nothing"),)

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        raise self._error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EMFILE, "Too many open files"), r"Too many open files.*ulimit -n"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), r"No space left on device \(/tmp/x\)\. Free some"),
        (ModuleNotFoundError("No module named 'pdqhash'"), "No module named 'pdqhash'. Install it on every node"),
    ],
)
def test_a_scorer_on_a_broken_machine_stops_the_run(error: Exception, reason: str):
    with pytest.raises(RunStopped, match=reason):
        score_rows(Raises(error), [ClipView(), ClipView()])
    rows = score_rows(Raises(ValueError("no face")), [ClipView(), ClipView()])
    assert [row["raises_error"] for row in rows] == ["ValueError: no face"] * 2


def test_a_command_on_a_full_disk_is_a_sentence(capsys: pytest.CaptureFixture[str]):
    def command() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/clipmill-embeddings")

    with pytest.raises(SystemExit) as ended:
        run_command(command)
    assert ended.value.code == FAILED
    assert "No space left on device (/tmp/clipmill-embeddings). Free some space" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)
