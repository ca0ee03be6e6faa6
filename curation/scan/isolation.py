"""Run a function in a child process with time and memory limits, so that no video can end a run.

Decoders are native code: they can hang, crash and allocate without limit, which no exception handler can stop. The
child process contains crashes and withholds what an attack would look for first (credentials, a parent that unpickles).
It is not a sandbox: the child has the user, the files and the network of its parent. See docs/cluster.md.
"""

import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import cv2

from clipmill.costs import unwatch, watch
from clipmill.errors import RunStopped, SourceError, UserError, raise_if_stopped
from clipmill.parents import killed_with_parent
from curation.scan import wire
from curation.scan.credentials import child_environment, store_of
from curation.video.decode import Limits

P = ParamSpec("P")
T = TypeVar("T")

_OUT_OF_MEMORY_EXIT = 86
_START_S = 120.0
"""Startup timeout of a child: imports take seconds on a healthy machine."""
_LAST_S = 1.0
"""Time from the end of a child's connection to its exit code."""
_READY_BYTES = 64 << 10
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from curation.scan.isolation import serve; serve()"
"""Code of the child. -I and this path exclude the working directory, and `__main__` is not executed again."""


class Isolated:
    """A child process that runs one function at a time, and is replaced when it hangs or dies.

    A context manager. The child serves many calls, so its imports are paid for once; each kind of store has a separate
    child, whose environment only has the credentials of that store. Use it from one thread: the kernel kills the child
    when the thread that started it ends, so no child outlives a parent killed with SIGKILL.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the children and their descendants. The next `run` starts new ones."""
        for store in list(self._children):
            self._close(store)

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a child without credentials. The function and its arguments are pickled.

        `function` must not be defined in `__main__`, and must declare its return type: plain values, dataclasses of
        them, SourceErrors. Raises SourceError: "timeout", "out_of_memory", "too_large" (a response of more than
        `answer_bytes`), "crashed", or as raised by the function. Other exceptions of the function become "crashed" with
        their type, message and location, except UserError, which is passed on. RunStopped: the child cannot start,
        which is not the source's fault.
        """
        return self.run_on("", function, *args, **kwargs)

    def run_on(self, uri: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `run`, in a child with the credentials of the store of `uri`."""
        if function.__module__ == "__main__":
            raise ValueError(f"{function.__qualname__} is defined in __main__, which the child does not import")
        store = store_of(uri)
        used = store in self._children
        try:
            answer = self._ask(store, pickle.dumps((function, args, kwargs)))
            return wire.decode(answer, function)
        except wire.NotUnderstood as error:
            self._close(store)
            raise SourceError("crashed", f"invalid response from the scan process: {error}") from error
        except _ChildDied as death:
            if not used:
                raise _verdict(death, self._limits) from None
            # What earlier sources left in the child may have killed it. In a new one only this source can.
            return self.run_on(uri, function, *args, **kwargs)

    def _ask(self, store: str, call: bytes) -> bytes:
        limits, answer = self._limits, None
        child = self._children.get(store) or _Child(store, limits)
        self._children[store] = child
        try:
            answer = child.ask(call, limits.timeout_s)
        except TimeoutError:
            raise SourceError("timeout", f"not finished after {limits.timeout_s:g} s") from None
        except wire.TooLong as error:
            raise SourceError(
                "too_large",
                f"its rows and thumbnails are {error.args[0]:,} bytes; the limit is {limits.answer_bytes:,} "
                "(limits.answer_bytes)",
            ) from None
        finally:
            if answer is None:  # also when interrupted: a late answer must not meet the next question
                self._close(store)
        return answer

    def _close(self, store: str) -> None:
        child = self._children.pop(store, None)
        if child is not None:
            child.kill()


class _ChildDied(Exception):
    def __init__(self, exit_code: int, *, started: bool, reason: str | None = None) -> None:
        super().__init__(exit_code, started, reason)
        self.exit_code = exit_code
        self.started = started
        self.reason = reason


class _Child:
    """The process, its process group, and the connection to it."""

    def __init__(self, store: str, limits: Limits) -> None:
        self._answer_bytes = limits.answer_bytes
        self._connection, childs_end = socket.socketpair()
        numbers = (childs_end.fileno(), os.getpid(), limits.memory_bytes, limits.spool_bytes)
        with childs_end:  # the child's copy has to be the only one, for its death to end the connection
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *_interpreter_flags(), "-c", _CHILD, json.dumps(sys.path), *map(str, numbers)],
                    env=child_environment(store, os.environ),
                    pass_fds=[childs_end.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # a decoder that prints must not print into our own output
                    start_new_session=True,
                )
            except OSError as error:
                self._connection.close()
                raise RunStopped(f"cannot start a child process for decoding: {error.strerror}") from error
        watch(self._process.pid)
        self.kill = weakref.finalize(self, _end, self._connection, self._process)
        """Ends the process and its group; also called when this object is collected and at interpreter exit."""

    def ask(self, call: bytes, timeout_s: float) -> bytes:
        """The response to a call. Raises TimeoutError (measured after the imports), wire.TooLong, _ChildDied."""
        started, reason = False, None
        try:
            self._connection.settimeout(_START_S)
            wire.send(self._connection, call)
            ready = wire.receive(self._connection, max_bytes=_READY_BYTES, timeout_s=_START_S)
            reason, started = ready.decode("utf-8", "replace"), not ready
            if started:
                return wire.receive(self._connection, max_bytes=self._answer_bytes, timeout_s=timeout_s)
        except (EOFError, ConnectionError, TimeoutError, wire.TooLong) as error:
            if started and not isinstance(error, (EOFError, ConnectionError)):
                raise
        self._await_exit()
        self.kill()
        raise _ChildDied(self._process.returncode, started=started, reason=reason)

    def _await_exit(self) -> None:
        """Wait for a process whose connection has closed: killing it would lose its exit code."""
        deadline_s = time.monotonic() + _LAST_S
        unreaped = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, self._process.pid, unreaped) is None and time.monotonic() < deadline_s:
            time.sleep(0.01)


def _end(connection: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    """Kill a child and its group. It is reaped last: until then its pid cannot be reused."""
    connection.close()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    unwatch(process.pid)


def _interpreter_flags() -> list[str]:
    """Isolated from PYTHON* variables and the working directory; otherwise like this interpreter."""
    flags = ["-I"]
    if sys.dont_write_bytecode:
        flags.append("-B")
    if sys.flags.utf8_mode:
        flags += ["-X", "utf8"]
    if sys.pycache_prefix:
        flags += ["-X", f"pycache_prefix={sys.pycache_prefix}"]
    return flags


def _verdict(death: _ChildDied, limits: Limits) -> SourceError | RunStopped:
    code = death.exit_code
    if not death.started:
        return RunStopped(
            "the child process for decoding could not start: "
            f"{death.reason or f'it exited with code {code}; see its output'}. It may use "
            f"limits.memory_bytes = {limits.memory_bytes:,} bytes; with much less than 256 MiB it cannot start"
        )
    if code == _OUT_OF_MEMORY_EXIT:
        return SourceError("out_of_memory", f"needed more than {limits.memory_bytes / 2**30:g} GiB of memory")
    if code == -signal.SIGKILL:
        return SourceError("crashed", "killed by SIGKILL, most likely because the machine is out of memory")
    if code < 0:
        return SourceError("crashed", f"killed in native code by {signal.Signals(-code).name}")
    return SourceError("crashed", f"the process exited by itself with code {code}")


def serve() -> None:
    """Main loop of the child: answer calls until the parent exits."""
    descriptor, parent_pid, memory_bytes, file_bytes = map(int, sys.argv[2:])
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    _prepare_child(parent_pid, memory_bytes, file_bytes)
    with suppress(EOFError, ConnectionError):
        while True:
            call = wire.receive(connection, max_bytes=sys.maxsize)
            try:
                function, args, kwargs = pickle.loads(call)  # imports the function's module
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".rstrip(" :.")
                wire.send(connection, reason.encode("utf-8", "backslashreplace"))
                return
            wire.send(connection, b"")
            wire.send(connection, _answer(function, args, kwargs))


def _prepare_child(parent_pid: int, memory_bytes: int, file_bytes: int) -> None:
    killed_with_parent(parent_pid)
    # RLIMIT_DATA counts what is allocated; RLIMIT_AS would count libraries and reserved addresses too. RLIMIT_NPROC is
    # left alone: it counts all processes and threads of the user, those of other runs as well.
    for kind, limit in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (allowed, allowed))
    cv2.setNumThreads(1)


def _answer(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Only our two exception types are sent back; others become an error message."""
    try:
        return wire.encode_value(function(*args, **kwargs))
    except Exception as error:
        if _out_of_memory(error):
            os._exit(_OUT_OF_MEMORY_EXIT)  # the heap may stay full: this child has to go
        try:
            raise_if_stopped(error)
        except RunStopped as stopped:
            return wire.encode_error(stopped)
        if isinstance(error, (SourceError, UserError)):
            return wire.encode_error(error)
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return wire.encode_error(SourceError("crashed", f"unexpected {type(error).__name__} in {where}: {error}"))


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether the error is caused by memory: FFmpeg's ENOMEM is a MemoryError, OpenCV has its own code."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
            return True
        error = error.__cause__ or error.__context__
    return False
