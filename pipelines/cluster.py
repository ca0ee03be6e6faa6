"""Ray, as the pipelines use it: on this machine, or on a running cluster through an address."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from curation.errors import UserError


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
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            ray.init(
                num_cpus=usable_cpus(), include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address!r}" if address else "a local Ray"
        raise UserError(f"cannot connect to {where}: {error}") from error
    try:
        _settle()
        yield
    finally:
        ray.shutdown()


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def _settle() -> None:
    """One progress display (ours), no log files of statistics, and patience with long videos."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.execution_no_progress_timeout_s = -1  # by default half an hour without a finished block fails the job
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.WARNING)
