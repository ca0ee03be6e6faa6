"""What asks a run to end."""

import logging
import os
import signal
import threading
import time
from pathlib import Path

import fsspec
import pytest

from training import stopping
from training.stopping import StopRequest


def test_the_first_signal_is_a_request_and_the_next_does_what_it_did_before(caplog: pytest.LogCaptureFixture) -> None:
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop.heeding_signals():  # noqa: PT012
        assert not stop.asked()
        with caplog.at_level(logging.WARNING, "clipmill.training"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked()
        assert caplog.messages == [
            "SIGTERM: stopping after this step with a checkpoint; send it again to stop immediately"
        ]
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_under_torchrun_repetitions_are_the_same_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its agent hands on what the terminal has sent to all of them already."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    stop = StopRequest()
    with stop.heeding_signals(log_request=False):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked()
    assert not caplog.messages


def test_a_file_is_a_request_too(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path / "stop")
    assert not stop.asked()
    (tmp_path / "stop").touch()
    assert stop.asked()
    (tmp_path / "stop").unlink()
    assert not stop.asked()


def test_a_file_in_a_store_is_a_request_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_ASKED_EVERY_S", 0.01)
    fs, stop, seen = fsspec.filesystem("memory"), StopRequest("memory://run/stop"), []

    def run() -> None:
        with stop.heeding_signals():
            seen.append(stop.asked())
            fs.pipe_file("/run/stop", b"")
            deadline_s = time.monotonic() + 30
            while not stop.asked() and time.monotonic() < deadline_s:
                time.sleep(0.01)
            seen.append(stop.asked())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    fs.rm_file("/run/stop")
    assert seen == [False, True]


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with StopRequest().heeding_signals():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [before]
