"""Ray for the pipelines: a local instance, or a running cluster given by its address."""

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from clipmill.errors import RunStopped, UserError
from pipelines.local_ray import private_ray
from pipelines.machine import usable_cpus

_CONNECT_TIMEOUT_S = 10.0
_UV_HOOK = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"


@contextmanager
def connected(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the duration of the block. If this process is already connected, that connection is used and
    left open.

    `address` (or the environment variable RAY_ADDRESS) names a cluster; without one a local Ray is started with
    `num_cpus` CPUs, by default all that this process may use. A local Ray accepts only this user's processes and cleans
    up after itself. Raises UserError if the cluster cannot be reached, RunStopped if Ray cannot start on this machine.
    """
    import ray  # imported here so that commands that do not need Ray start fast

    if ray.is_initialized():
        _settle()
        yield
        return
    address = cluster_address(address)
    if address and num_cpus:
        raise UserError(f"--num-cpus applies to a local Ray only; omit it for the cluster at {address}")
    with _quiet_log(), private_ray(num_cpus or usable_cpus()) if not address else _cluster(address) as settings:
        _start(settings, f"connect to the Ray cluster at {address!r}" if address else "start Ray on this machine")
        try:
            _settle()
            yield
        finally:
            ray.shutdown()


def cluster_address(address: str | None) -> str | None:
    """The address of the cluster to use, by default that of the environment variable RAY_ADDRESS; None: there is
    none."""
    return address or os.environ.get("RAY_ADDRESS")


def _start(settings: dict[str, Any], action: str) -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    _keep_environment_of_nodes()
    try:
        ray.init(**settings, job_config=_own_paths(), log_to_driver=False, logging_level=logging.CRITICAL)
    except BaseException as error:
        with suppress(Exception):
            ray.shutdown()
        if isinstance(error, SystemExit):  # Ray exits this way on SIGTERM during startup
            raise KeyboardInterrupt from error
        if not isinstance(error, Exception):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        # A local failure is usually transient, most often an overloaded machine.
        kind = RunStopped if settings["address"] == "local" else UserError
        raise kind(f"cannot {action}: {reason}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray installs its own handler, which ends with a stack trace.


@contextmanager
def _cluster(address: str) -> Iterator[dict[str, Any]]:
    try:
        _check_listening(address)
    except OSError as error:
        raise UserError(f"cannot connect to the Ray cluster at {address!r}: {error}") from error
    yield {"address": address}


def _own_paths() -> Any:
    """Ray's job configuration; workers import the installed packages and nothing from the working directory.

    Ray prepends the driver's working directory and script folder to each worker's `sys.path` unless the job sets its
    own working directory: a folder named `svd` or `training` there would shadow our package.
    """
    from ray.job_config import JobConfig

    class OwnPaths(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return OwnPaths()


def _keep_environment_of_nodes() -> None:
    """Disable Ray's hook for `uv run`, unless the variable of the hook is set.

    The hook uploads the working directory, videos included, and recreates the environment of the driver in every worker
    from a project file that may not be there. Workers need only what is installed on their node.
    """
    if _UV_HOOK not in os.environ:
        from ray._private import ray_constants

        setattr(ray_constants, _UV_HOOK, False)  # read from the environment when Ray is imported


def _check_listening(address: str) -> None:
    """Raise ConnectionError at once if nothing listens on host and port; Ray would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise ConnectionError(error.strerror or str(error)) from error


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Log only critical messages of Ray: its errors are raised here and reported once."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    yield


def _settle() -> None:
    """One progress display (ours), no statistics files, and no timeout for long videos."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.execution_no_progress_timeout_s = (
        -1
    )  # the default fails the job after half an hour without a finished block
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks", UserWarning)  # of little work


@contextmanager
def stopped_by_errors() -> Iterator[None]:
    """Translate what Ray raises in the block, for a failed task or a lost cluster, into RunStopped.

    Ray keeps only the text of a task's exception, so errors that the user must see unchanged are returned as values
    instead.
    """
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        first = str(error).partition("\nThe above exception was")[0]
        lines = [line.strip() for line in first.splitlines() if line.strip()]
        raise RunStopped(f"a task on Ray failed: {lines[-1] if lines else type(error).__name__}") from error


def usual_device() -> str:
    """cuda if the connected cluster has a GPU, else cpu; the driver's machine may have none."""
    import ray

    return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
