"""Children that end with their parent, however it dies: nobody else would tell them."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """End this process of `multiprocessing` when its parent is gone, whatever it is waiting for or computing.

    Works with every start method: waits on the pipe that the parent holds, not for a parent process that is a fork
    server.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="clipmill-parent").start()


def killed_with_parent(parent_pid: int) -> None:
    """Let Linux kill this child of `subprocess` when the thread that started it ends, even in native code that holds
    the interpreter's lock. No effect elsewhere.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before the line above took effect
            os._exit(1)
