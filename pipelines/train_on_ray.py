"""`clipmill train --ray-workers`: train one stage on Ray Train workers, restarted from the newest checkpoint."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

from clipmill import storage
from clipmill.errors import RunStopped, Superseded, UserError
from pipelines.cluster import connected, usual_device
from pipelines.fence import refuse_unless_silent
from pipelines.progress import Reporter, note
from pipelines.repeated import repeated
from pipelines.train import Progress, announce, owned_run, user_error
from training.loop import NonFinite, gradient_accumulation_steps
from training.metrics import METRICS
from training.run_folder import Location, below, is_stored
from training.run_stage import check_settings, finished, run_stage
from training.stages import Stage
from training.stopping import Stopped, StopRequest

STOP = "stop"
"""Stop file in the run folder: tells the Ray workers to save a checkpoint and stop."""
RESTARTS = 3
"""Restarts of a failed worker group, each from the newest checkpoint."""
_RESOURCES = {"cuda": "GPU", "cpu": "CPU"}
_FOLLOWED_EVERY_S, _STORE_FOLLOWED_EVERY_S = 1.0, 10.0
_LINE_BYTES = 1 << 16
"""Upper bound on the size of a log line."""


def train_on_ray(
    stage: Stage,
    data: str,
    out: Location,
    *,
    workers: int,
    images: str | None = None,
    init: Path | str | None = None,
    address: str | None = None,
    device: str | None = None,
    take_over: bool = False,
    quiet: bool = False,
) -> Location:
    """Train or resume one stage on Ray workers, one per GPU, or per CPU with `device` cpu; returns its model.

    `data`, `images`, `out` and `init` may be fsspec URLs; what is local must be on a file system shared by all workers.
    A failed group is restarted from the newest checkpoint unless the failure is permanent.

    Ctrl-C and SIGTERM are forwarded to the workers as a file, RUN/stop. Progress is that of RUN/metrics.jsonl: in a
    store, it appears with each checkpoint. Raises UserError, RunStopped and KeyboardInterrupt as `train`.
    """
    run: Path | str = out if is_stored(out) else Path(out).absolute()
    gradient_accumulation_steps(stage, workers)  # raises if the batch size is not divisible among workers
    with Reporter(stage.name, stage.run.steps, unit="steps", quiet=quiet) as reporter, ExitStack() as stack:
        if not take_over:
            refuse_unless_silent(str(run), reporter.waiting)
        check_settings(stage, run)
        reporter.connecting(address)
        stack.enter_context(connected(address))
        device = "cuda" if (device or usual_device()) == "cuda" else "cpu"
        _check_room(workers, _RESOURCES[device], local=not (address or os.environ.get("RAY_ADDRESS")))
        settings = {
            "stage": stage,
            "data": _absolute(data),
            "out": run,
            "init": init.absolute() if isinstance(init, Path) else init,
            "images": None if images is None else _absolute(images),
            "device": device,
            # This process owns the run, whichever of its workers are restarted.
            "check": stack.enter_context(owned_run(str(run), take_over=take_over)),
        }
        trainer = _trainer(settings, workers)
        announce(stage, out, quiet=quiet)
        reporter.waiting("starting the workers")
        stop = StopRequest()
        try:
            with _followed(below(run, METRICS), Progress(reporter)):
                _fit(trainer.fit, stop, below(run, STOP))
        except Exception as error:  # Ray's exception types differ between versions
            cause = getattr(error, "controller_failure", None)
            if stop.asked():
                note(str(cause or error).strip().splitlines()[-1])
                raise KeyboardInterrupt from error
            raise cause if isinstance(cause, UserError) else RunStopped(_ray_failure(error)) from error
    model = finished(run)
    assert model is not None
    return cast("Location", model)


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
            **_ray_storage(out),
            failure_config=FailureConfig(max_failures=RESTARTS),
            callbacks=[_stop_on_permanent_errors(out)],
        ),
    )


def _ray_storage(out: Path | str) -> dict[str, Any]:
    """Where Ray keeps its own state: RUN/ray, which all nodes must reach."""
    if isinstance(out, Path):
        return {"storage_path": str(out)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = storage.filesystem(out)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _stop_on_permanent_errors(out: Path | str) -> Any:
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


def _fit(fit: Callable[[], Any], stop: StopRequest, file: Path | str) -> None:
    """Call `fit` in a thread, because in the main thread Ray handles Ctrl-C by killing its workers; forward stop
    requests as a file. Raises what `fit` does.
    """
    fs, path = storage.filesystem(str(file))
    storage.remove(fs, path)
    fitted: Future[Any] = Future()

    def run() -> None:
        try:
            fitted.set_result(fit())
        except BaseException as error:
            fitted.set_exception(error)

    with stop.heeding_signals():
        threading.Thread(target=run, daemon=True).start()
        try:
            told = False
            while not fitted.done():
                wait([fitted], timeout=_FOLLOWED_EVERY_S)
                if stop.asked() and not told:
                    with suppress(UserError):  # of a store that does not answer: tried again
                        storage.write_bytes(fs, path, b"")
                        told = True
        finally:
            with suppress(UserError):  # the error of the run takes precedence; the next run removes the file
                storage.remove(fs, path)
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
        stop=StopRequest(below(settings["out"], STOP)),
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
def _followed(metrics: Path | str, on_log: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Call `on_log` from a thread with the newest line of a log written by another process."""
    every_s = _FOLLOWED_EVERY_S if isinstance(metrics, Path) else _STORE_FOLLOWED_EVERY_S

    def follow() -> None:
        with suppress(OSError, ValueError, IndexError):  # missing or truncated
            on_log(json.loads(_tail(metrics).splitlines()[-1]))

    with repeated(follow, every_s=every_s, name="clipmill-log", once_more=True):
        yield


def _tail(file: Path | str) -> bytes:
    """Read the last `_LINE_BYTES` of a file without reading the rest. Raises OSError and, for a store, UserError."""
    fs, path = storage.filesystem(str(file))
    fs.invalidate_cache(path)
    with storage.explained("read", fs, path):
        size_bytes = int(fs.size(path))
        tail: bytes = fs.cat_file(path, start=max(0, size_bytes - _LINE_BYTES), end=size_bytes)
        return tail


def _ray_failure(error: Exception) -> str:
    """Last line of each rank's error, or of the error itself."""
    failures = getattr(error, "worker_failures", {})
    failures_by_rank = {f"rank {rank}: ": failure for rank, failure in failures.items()} or {"": error}
    lines = [f"{whose}{str(failure).strip().splitlines()[-1]}" for whose, failure in failures_by_rank.items()]
    return f"training on Ray failed{f' after {RESTARTS} restarts' if failures else ''}: {'; '.join(lines)}"
