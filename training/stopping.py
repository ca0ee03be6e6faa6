"""Graceful stop: Ctrl-C, SIGTERM or a stop file end the run after the current step, with a checkpoint."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clipmill import storage

_LOG = logging.getLogger("clipmill.training")
_ASKED_EVERY_S = 5.0
"""How often to look for a stop file in a store."""
_CAUSES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(Exception):
    """The run was asked to stop early and saved a checkpoint; the message says where."""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self, file: Path | str | None = None) -> None:
        """`file`, a path or an fsspec URL: its existence is a stop request, too; Ray workers get no signals."""
        self._file = file
        self._cause: str | None = None

    def asked(self) -> bool:
        return self._cause is not None or (isinstance(self._file, Path) and self._file.exists())

    @contextmanager
    def _following_store(self) -> Iterator[None]:
        """Look for a file in a store from a thread: no step waits for an answer."""
        if not isinstance(self._file, str):
            yield
            return
        url, over = self._file, threading.Event()

        def follow() -> None:
            while not over.is_set() and self._cause is None:
                with suppress(Exception):  # asked again
                    if storage.exists(*storage.filesystem(url)):
                        self._cause = "stop file"
                over.wait(_ASKED_EVERY_S)

        threading.Thread(target=follow, daemon=True, name="clipmill-stop").start()
        try:
            yield
        finally:
            over.set()

    @contextmanager
    def heeding_signals(self, *, log_request: bool = True) -> Iterator[None]:
        """Within the block, the first SIGINT or SIGTERM requests a stop and is logged; the next one has its previous
        effect. Signals have no effect outside the main thread, where Python delivers none. A file in a store is looked
        for within the block alone.

        torchrun forwards signals its workers may have received already, so under torchrun all of them count as one
        request; torchrun kills workers that do not exit within its timeout.
        """
        with self._following_store():
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            with self._handling_signals(log_request=log_request):
                yield

    @contextmanager
    def _handling_signals(self, *, log_request: bool) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in _CAUSES}

        def handle(number: int, frame: Any) -> None:
            if self._cause is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
                signal.signal(number, before[signal.Signals(number)])
                os.kill(os.getpid(), number)
            elif self._cause is None:
                self._cause = _CAUSES[signal.Signals(number)]
                if log_request:
                    _LOG.warning(
                        "%s: stopping after this step with a checkpoint; send it again to stop immediately", self._cause
                    )

        for number in _CAUSES:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
