"""Graceful stop: Ctrl-C, SIGTERM or a stop file end the run after the current step, with a checkpoint."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LOG = logging.getLogger("clipmill.training")
_CAUSES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(Exception):
    """The run was asked to stop early and saved a checkpoint; the message says where."""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self, file: Path | None = None) -> None:
        """`file`: its existence is a stop request, too; Ray workers get no signals."""
        self._file = file
        self._cause: str | None = None

    def asked(self) -> bool:
        return self._cause is not None or (self._file is not None and self._file.exists())

    @contextmanager
    def heeding_signals(self, *, log_request: bool = True) -> Iterator[None]:
        """Within the block, the first SIGINT or SIGTERM requests a stop and is logged; the next one has its previous
        effect. No effect outside the main thread, where Python delivers no signals.

        torchrun forwards signals its workers may have received already, so under torchrun all of them count as one
        request; torchrun kills workers that do not exit within its timeout.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
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
