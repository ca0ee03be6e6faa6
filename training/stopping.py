"""Ending a run before its last step: Ctrl-C, SIGTERM, or a file ask for it; it then ends after the step at hand, with a
checkpoint."""

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
    """A run that was asked to end early, and has saved a checkpoint; says where."""


class StopRequest:
    """Whether this process was asked to end its run."""

    def __init__(self, file: Path | None = None) -> None:
        """`file`: that it exists is a request, too; workers of Ray get no signals."""
        self._file = file
        self._cause: str | None = None

    def asked(self) -> bool:
        return self._cause is not None or (self._file is not None and self._file.exists())

    @contextmanager
    def heeding_signals(self, *, say: bool = True) -> Iterator[None]:
        """In the block, the first SIGINT or SIGTERM is a request, which the log tells of (`say`); the next one does
        what it did before. Without effect outside of the main thread, where Python takes no signals.

        torchrun hands on what its workers may have got already: there all are the same request, and a worker that does
        not end within torchrun's patience is killed by it.
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
                if say:
                    _LOG.warning("%s: ending after this step, with a checkpoint; again to end at once", self._cause)

        for number in _CAUSES:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
