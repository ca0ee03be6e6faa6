"""Run a function in a child process with a time and a memory limit, so that no video can end a run.

Decoders are native code: they hang, crash and allocate without end, and no exception handler can stop that.
"""

import ctypes
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection, Pipe
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import cv2

from curation.decode import Limits
from curation.errors import SourceError, UserError

P = ParamSpec("P")
T = TypeVar("T")
_Outcome = tuple[Any, Exception | None]
"""What the function returned, or why it did not."""

_OUT_OF_MEMORY_EXIT = 86
_START_S = 120.0
"""For a child to import what it needs: seconds, unless the machine is in trouble."""
_PR_SET_PDEATHSIG = 1


class Isolated:
    """A child process that runs one function at a time, and is replaced when it hangs or dies.

    A context manager. The child serves many calls, so its imports are paid once. Use it from one thread: the
    kernel kills the child when the thread that started it ends, so none outlives a parent killed with -9.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._child: _Child | None = None

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the child, whatever it is doing. The next `run` starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in the child. It and its arguments are pickled; it must not come from `__main__`.

        Raises SourceError: "timeout", "out_of_memory", "crashed", or as the function raised it. Any other
        exception of the function becomes "crashed" with its type, message and place, except UserError, which
        stays. RuntimeError: the child cannot even start, which is no fault of the source.
        """
        if function.__module__ == "__main__":
            raise ValueError(f"{function.__qualname__} comes from __main__, which the child does not import")
        used = self._child is not None
        try:
            value, error = self._ask(function, args, kwargs)
        except _ChildDied as death:
            if not used:
                raise _verdict(death, self._limits) from None
            # It may have died of what earlier sources left in it: only a fresh child convicts a source.
            return self.run(function, *args, **kwargs)
        if error is not None:
            raise error
        return value

    def _ask(self, function: Callable[..., Any], args: Any, kwargs: Any) -> _Outcome:
        self._child = self._child or _Child(self._limits.memory_bytes)
        outcome = None
        try:
            outcome = self._child.ask((function, args, kwargs), self._limits.timeout_s)
        finally:
            if outcome is None:  # also when interrupted: a late answer must not meet the next question
                self.close()
        return outcome or (None, SourceError("timeout", f"not finished after {self._limits.timeout_s:g} s"))


class _ChildDied(Exception):
    def __init__(self, exit_code: int, *, started: bool) -> None:
        super().__init__(exit_code, started)
        self.exit_code = exit_code
        self.started = started


class _Child:
    """The process and the pipe to it."""

    def __init__(self, memory_bytes: int) -> None:
        self._pipe, childs_end = Pipe()
        self._process = _Process(target=_serve, args=(childs_end, os.getpid(), memory_bytes), daemon=True)
        self._process.start()
        childs_end.close()  # the child's copy has to be the only one, for its death to end the pipe

    def ask(self, call: tuple[Any, ...], timeout_s: float) -> _Outcome | None:
        """The outcome of the call; None when time is up, which runs from when all imports are done."""
        started = False
        with suppress(EOFError, ConnectionError):  # the pipe ends with the child: its exit code says why
            self._pipe.send(call)
            started = self._pipe.poll(_START_S) and self._pipe.recv()
            if started:
                return self._pipe.recv() if self._pipe.poll(timeout_s) else None
        raise _ChildDied(self.kill(), started=started)

    def kill(self) -> int:
        """End the process, if it has not ended; its exit code, -N for signal N."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _verdict(death: _ChildDied, limits: Limits) -> SourceError | RuntimeError:
    code = death.exit_code
    if not death.started:
        return RuntimeError(f"a child process could not start: exit code {code}, its stderr says more")
    if code == _OUT_OF_MEMORY_EXIT:
        return SourceError("out_of_memory", f"needed more than {limits.memory_bytes / 2**30:g} GiB of memory")
    if code == -signal.SIGKILL:
        return SourceError("crashed", "killed by SIGKILL; most often the machine is out of memory")
    if code < 0:
        return SourceError("crashed", f"native code was killed by {signal.Signals(-code).name}")
    return SourceError("crashed", f"the process exited by itself with code {code}")


def _serve(pipe: Connection, parent_pid: int, memory_bytes: int) -> None:
    """What the child does: answer calls until the parent is gone."""
    _prepare_child(parent_pid, memory_bytes)
    with suppress(EOFError, ConnectionError):
        while True:
            function, args, kwargs = pipe.recv()  # imports the function's module
            pipe.send(True)
            pipe.send(_guarded(function, args, kwargs))


def _prepare_child(parent_pid: int, memory_bytes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before the line above took effect
            os._exit(1)
    # RLIMIT_DATA counts what is allocated; RLIMIT_AS would count libraries and reserved addresses too.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cv2.setNumThreads(1)


def _guarded(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Outcome:
    """Exceptions of libraries do not all survive pickling, so only our own two kinds go back."""
    try:
        return function(*args, **kwargs), None
    except Exception as error:
        if _out_of_memory(error):
            os._exit(_OUT_OF_MEMORY_EXIT)  # the heap may stay full: this child has to go
        if isinstance(error, (SourceError, UserError)):
            return None, error
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return None, SourceError("crashed", f"unexpected {type(error).__name__} in {where}: {error}")


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory is at the root of it: FFmpeg's ENOMEM is a MemoryError too, OpenCV has its own code."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
            return True
        error = error.__cause__ or error.__context__
    return False


class _Process(SpawnProcess):
    """A spawned process that leaves the parent's `__main__` alone.

    Plain spawn runs the parent's main script again in every child: inside a Ray worker that is an import of
    Ray, and a script without the `if __name__ == "__main__"` guard would start itself over.
    """

    _starting = threading.Lock()

    def start(self) -> None:
        main = sys.modules["__main__"]
        with self._starting:
            spec, main.__spec__ = main.__spec__, ModuleSpec("__main__", None)  # by this name, spawn skips it
            try:
                super().start()
            finally:
                main.__spec__ = spec
