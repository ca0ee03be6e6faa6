"""Ray, as the pipelines use it: on this machine, or on a running cluster through an address."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from clipmill.errors import RunStopped, UserError
from pipelines.local_ray import private_ray

_CONNECT_TIMEOUT_S = 10.0


@contextmanager
def connected(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of the block. A Ray that is already running in this process is used and left running.

    `address` (or the environment's RAY_ADDRESS) names a cluster; without one a local Ray is started, with `num_cpus`
    or all CPUs that this process may use: only this user's processes can use it, and it leaves nothing behind.
    Raises UserError when the cluster cannot be reached, RunStopped when Ray cannot start on this machine.
    """
    import ray  # here, so that commands which need no cluster start at once

    if ray.is_initialized():
        _settle()
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address and num_cpus:
        raise UserError(f"--num-cpus is for a local Ray; the cluster at {address} has the CPUs that it has")
    with _quiet_log(), private_ray(num_cpus or usable_cpus()) if not address else _cluster(address) as settings:
        _start(settings, f"connect to the Ray cluster at {address!r}" if address else "start Ray on this machine")
        try:
            _settle()
            yield
        finally:
            ray.shutdown()


def _start(settings: dict[str, Any], action: str) -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**settings, job_config=_own_paths(), log_to_driver=False, logging_level=logging.CRITICAL)
    except BaseException as error:
        with suppress(Exception):
            ray.shutdown()
        if isinstance(error, SystemExit):  # Ray's answer to SIGTERM while it starts
            raise KeyboardInterrupt from error
        if not isinstance(error, Exception):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        # On this machine it is the machine's state, most often too much work: another try may do.
        kind = RunStopped if settings["address"] == "local" else UserError
        raise kind(f"cannot {action}: {reason}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own handler there, which ends in a stack trace


@contextmanager
def _cluster(address: str) -> Iterator[dict[str, Any]]:
    try:
        _check_listening(address)
    except OSError as error:
        raise UserError(f"cannot connect to the Ray cluster at {address!r}: {error}") from error
    yield {"address": address}


def _own_paths() -> Any:
    """Ray's configuration of a job whose workers import what is installed, and nothing from the working directory.

    Ray puts the driver's working directory and the folder of its script in front of every worker's `sys.path`, unless
    the job brings its own working directory: a folder `svd` or `training` there would hide our package.
    """
    from ray.job_config import JobConfig

    class OwnPaths(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return OwnPaths()


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def _check_listening(address: str) -> None:
    """Raise ConnectionError at once for a host and port where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise ConnectionError(error.strerror or str(error)) from error


@contextmanager
def _quiet_log() -> Iterator[None]:
    """What goes wrong in Ray is raised, and said once; its log would say it in pages."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    yield


def _settle() -> None:
    """One progress display (ours), no log files of statistics, and patience with long videos."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.execution_no_progress_timeout_s = -1  # by default half an hour without a finished block fails the job
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def stopped_by_errors() -> Iterator[None]:
    """Turn what Ray raises in the block, for a task that failed or a cluster that is gone, into RunStopped.

    Ray keeps an exception of a task as text alone: what a user should read exactly as it was raised is returned.
    """
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        first = str(error).partition("\nThe above exception was")[0]
        lines = [line.strip() for line in first.splitlines() if line.strip()]
        raise RunStopped(f"a task on Ray failed: {lines[-1] if lines else type(error).__name__}") from error


def usual_device() -> str:
    """cuda where the cluster that this process is connected to has a GPU; the driver's machine may have none."""
    import ray

    return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
