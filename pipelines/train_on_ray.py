"""`clipmill train --ray-workers`: train one stage on Ray Train workers, restarted from the newest checkpoint."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from clipmill.addresses import without_credentials
from clipmill.errors import RunStopped, Superseded, UserError
from pipelines.cluster import connected, usual_device
from pipelines.fence import refuse_unless_silent
from pipelines.progress import Reporter, note
from pipelines.train import Progress, announce, owned_run, user_error
from training.loop import NonFinite, gradient_accumulation_steps
from training.metrics import METRICS
from training.run_stage import check_settings, finished, run_stage
from training.stages import Stage
from training.stopping import Stopped, StopRequest

STOP = "stop"
"""Stop file in the run folder: tells the Ray workers to save a checkpoint and stop."""
RESTARTS = 3
"""Restarts of a failed worker group, each from the newest checkpoint."""
_RESOURCES = {"cuda": "GPU", "cpu": "CPU"}
_FOLLOWED_EVERY_S = 1.0
_LINE_BYTES = 1 << 16
"""Upper bound on the size of a log line."""


def train_on_ray(
    stage: Stage,
    data: str,
    out: Path | str,
    *,
    workers: int,
    images: str | None = None,
    init: Path | str | None = None,
    address: str | None = None,
    device: str | None = None,
    take_over: bool = False,
    quiet: bool = False,
) -> Path:
    """Train or resume one stage on Ray workers, one per GPU, or per CPU with `device` cpu.

    `out`, `init` and local `data` must be on a file system shared by all workers. A failed group is restarted from the
    newest checkpoint unless the failure is permanent.

    Ctrl-C and SIGTERM are forwarded to the workers as a file, RUN/stop. Raises UserError, RunStopped and
    KeyboardInterrupt as `train`.
    """
    if isinstance(out, str):
        raise UserError(
            f"--ray-workers expects a run folder that all workers share, got --out {without_credentials(out)}. Use "
            "torchrun to train into an object store"
        )
    gradient_accumulation_steps(stage, workers)  # raises if the batch size is not divisible among workers
    with Reporter(stage.name, stage.run.steps, unit="steps", quiet=quiet) as reporter, ExitStack() as stack:
        if not take_over:
            refuse_unless_silent(str(out), reporter.waiting)
        check_settings(stage, out)
        reporter.connecting(address)
        stack.enter_context(connected(address))
        device = "cuda" if (device or usual_device()) == "cuda" else "cpu"
        _check_room(workers, _RESOURCES[device], local=not (address or os.environ.get("RAY_ADDRESS")))
        settings = {
            "stage": stage,
            "data": _absolute(data),
            "out": out.absolute(),
            "init": init.absolute() if isinstance(init, Path) else init,
            "images": None if images is None else _absolute(images),
            "device": device,
            # This process owns the run, whichever of its workers are restarted.
            "check": stack.enter_context(owned_run(str(out), take_over=take_over)),
        }
        trainer = _trainer(settings, workers)
        announce(stage, out, quiet=quiet)
        reporter.waiting("starting the workers")
        stop = StopRequest()
        try:
            with _followed(out / METRICS, Progress(reporter)):
                _fit(trainer.fit, stop, out / STOP)
        except Exception as error:  # Ray's exception types differ between versions
            cause = getattr(error, "controller_failure", None)
            if stop.asked():
                note(str(cause or error).strip().splitlines()[-1])
                raise KeyboardInterrupt from error
            raise cause if isinstance(cause, UserError) else RunStopped(_ray_failure(error)) from error
    model = finished(out)
    assert model is not None
    return model


def _absolute(shards: str) -> str:
    """Workers have another working directory."""
    return shards if "://" in shards else os.path.abspath(shards)


def _trainer(settings: Mapping[str, Any], workers: int) -> Any:
    """Build the Ray trainer; workers use GPUs if the settings say cuda."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu, out = settings["device"] == "cuda", settings["out"]
    return TorchTrainer(
        _ray_worker,
        train_loop_config=dict(settings),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            name="ray",
            storage_path=str(out),
            failure_config=FailureConfig(max_failures=RESTARTS),
            callbacks=[_stop_on_permanent_errors(out)],
        ),
    )


def _stop_on_permanent_errors(out: Path) -> Any:
    """Callback that stops retrying on permanent errors: an exception in a callback makes Ray Train give up."""
    from ray.train import UserCallback

    class StopOnPermanentError(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            causes = [getattr(error, "_base_exc", error) for error in worker_exceptions.values()]
            if all(is_permanent(cause) for cause in causes):
                raise user_error(causes[0], out)

    return StopOnPermanentError()


def is_permanent(error: BaseException) -> bool:
    """Whether `error` would occur again after a restart, or the stop was requested."""
    if isinstance(error, NonFinite | Stopped | Superseded | FileNotFoundError):
        return True
    return isinstance(error, ValueError) and not isinstance(error, RunStopped)


def _fit(fit: Callable[[], Any], stop: StopRequest, file: Path) -> None:
    """Call `fit` in a thread, because in the main thread Ray handles Ctrl-C by killing its workers; forward stop
    requests as a file. Raises what `fit` does.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    fitted: Future[Any] = Future()

    def run() -> None:
        try:
            fitted.set_result(fit())
        except BaseException as error:
            fitted.set_exception(error)

    with stop.heeding_signals():
        threading.Thread(target=run, daemon=True).start()
        try:
            while not fitted.done():
                wait([fitted], timeout=_FOLLOWED_EVERY_S)
                if stop.asked():
                    file.touch()
        finally:
            file.unlink(missing_ok=True)
    fitted.result()


def _ray_worker(settings: Mapping[str, Any]) -> None:
    """Training function of a Ray worker; Ray has initialized the process group."""
    run_stage(
        settings["stage"],
        settings["data"],
        settings["out"],
        images=settings["images"],
        init=settings["init"],
        device=settings["device"],
        stop=StopRequest(settings["out"] / STOP),
        own=lambda: nullcontext(settings["check"]),
    )


def _check_room(workers: int, kind: str, *, local: bool) -> None:
    """Raise UserError if workers would wait forever; print a note if the cluster may still scale up."""
    import ray

    there = ray.cluster_resources().get(kind, 0)
    if there < workers:
        sentence = f"expected a {kind} for each of {workers} workers, got {there:g}"
        if local:
            raise UserError(f"{sentence}; lower --ray-workers or connect to a larger cluster (--address)")
        note(f"{sentence}; waiting for the cluster to scale up")


@contextmanager
def _followed(metrics: Path, on_log: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Call `on_log` from a thread with the newest line of a log written by another process."""
    over = threading.Event()

    def follow() -> None:
        last = False
        while not last:
            last = over.wait(_FOLLOWED_EVERY_S)
            with suppress(OSError, ValueError, IndexError):  # missing or truncated
                on_log(json.loads(_tail(metrics).splitlines()[-1]))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _tail(path: Path) -> bytes:
    """Read the last `_LINE_BYTES` of a file without reading the rest."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LINE_BYTES))
        return file.read()


def _ray_failure(error: Exception) -> str:
    """Last line of each rank's error, or of the error itself."""
    failures = getattr(error, "worker_failures", {})
    failures_by_rank = {f"rank {rank}: ": failure for rank, failure in failures.items()} or {"": error}
    lines = [f"{whose}{str(failure).strip().splitlines()[-1]}" for whose, failure in failures_by_rank.items()]
    return f"training on Ray failed{f' after {RESTARTS} restarts' if failures else ''}: {'; '.join(lines)}"
