"""Ray, as the pipelines use it: on this machine, or on a running cluster through an address."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from curation.errors import UserError

_CONNECT_TIMEOUT_S = 10.0


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Ray for the length of the block. A Ray that is already running in this process is used and left running.

    `address` (or the environment's RAY_ADDRESS) names a cluster; without one a local Ray with all CPUs is started.
    Raises UserError when the cluster cannot be reached.
    """
    import ray  # here, so that commands which need no cluster start at once

    if ray.is_initialized():
        _settle()
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)  # what goes wrong comes as an exception
    address = address or os.environ.get("RAY_ADDRESS")
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _assure_somebody_answers(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",  # not one that somebody else has running on this machine
                num_cpus=usable_cpus(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address!r}" if address else "a local Ray"
        raise UserError(f"cannot connect to {where}: {error}") from error
    try:
        _settle()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own handler there, which ends in a stack trace
        yield
    finally:
        ray.shutdown()


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def _assure_somebody_answers(address: str) -> None:
    """Raise ConnectionError at once for a host and port where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise ConnectionError(f"nobody answers there ({error.strerror or error})") from error


def _settle() -> None:
    """One progress display (ours), no log files of statistics, and patience with long videos."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.execution_no_progress_timeout_s = -1  # by default half an hour without a finished block fails the job
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def usual_device() -> str:
    """cuda where the cluster that this process is connected to has a GPU; the driver's machine may have none."""
    import ray

    return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
