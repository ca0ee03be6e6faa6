"""`clipmill train`: a stage in this process, under torchrun, or on Ray workers."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from clipmill.config import read_yaml
from clipmill.errors import RunStopped, UserError
from pipelines.printable import log_to_stderr
from pipelines.progress import Reporter, note
from training.checkpoint import CHECKPOINTS, CheckpointError, complete_checkpoints, describe_latest
from training.estimate import ASSUMED_MFU, estimate
from training.loop import NonFinite, gradient_accumulation_steps
from training.metrics import METRICS
from training.run_stage import finished, run_stage
from training.stages import Stage, overlay, parse_setting
from training.stopping import Stopped, StopRequest

_STOPS = (ValueError, OSError, CheckpointError, NonFinite)
_LASTING = (ValueError, FileNotFoundError, NonFinite, Stopped)
"""What the next start would only meet again, and what was asked for."""
STOP = "stop"
"""File in a run's folder that asks the workers of Ray to end it, after a checkpoint."""
RESTARTS = 3
"""How often Ray starts a failed group of workers anew, from the newest checkpoint."""
_FOLLOWED_EVERY_S = 1.0
_LINE_BYTES = 1 << 16
"""More than a line of the log has."""


def resolve_stage(name: str, config: Path | None = None, settings: Sequence[str] = ()) -> Stage:
    """The preset with a YAML file and then `group.key=value` settings laid over it. Raises UserError."""
    try:
        stage = Stage.preset(name)
        if config is not None:
            stage = overlay(stage, read_yaml(str(config)), origin=str(config))
        for setting in settings:
            stage = overlay(stage, parse_setting(setting), origin="--set")
        return stage
    except (ValueError, OSError) as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from error


def train(
    stage: Stage,
    data: str,
    out: Path,
    *,
    images: str | None = None,
    init: Path | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Path:
    """Train, or resume, one stage; returns its model.

    Raises UserError for what cannot be trained on, RunStopped (a UserError) for what stopped it on the way, and
    KeyboardInterrupt where Ctrl-C or SIGTERM ended it, after a checkpoint.
    """
    log_to_stderr()
    quiet = quiet or int(os.environ.get("RANK", "0")) > 0
    _announce(stage, out, quiet=quiet)
    try:
        with Reporter(stage.name, stage.run.steps, unit="steps", quiet=quiet) as reporter:
            reporter.waiting("loading the model and reading the shards")
            return run_stage(
                stage, data, out, images=images, init=init, device=device, on_log=_Progress(reporter)
            ).model
    except Stopped as stopped:
        if not quiet:
            note(str(stopped))
        raise KeyboardInterrupt from stopped
    except _STOPS as error:
        raise _told(error, out) from error


def _announce(stage: Stage, out: Path, *, quiet: bool) -> None:
    """Say from where a run is resumed."""
    checkpoints = complete_checkpoints(out / CHECKPOINTS)
    if checkpoints and not quiet:
        step = int(checkpoints[-1].name.removeprefix("step-"))
        note(f"resuming {out} from step {step:,} of {stage.run.steps:,}")


def dry_run(stage: Stage, gpus: int) -> list[tuple[str, str]]:
    """What the stage would cost, as rows to print. Raises UserError where its batches do not divide among `gpus`."""
    try:
        batches = gradient_accumulation_steps(stage, gpus)
        costs = estimate(stage, gpus=gpus)
    except ValueError as error:
        raise UserError(str(error)) from error
    gib = 2**30
    total = (costs.weights_bytes + costs.activations_bytes) / gib
    sharded = " (sharded)" if costs.sharded else ""
    days = costs.days(stage.run.steps, gpus)
    return [
        ("parameters", f"{costs.parameters:,}"),
        ("  trainable", f"{costs.trained_parameters:,}"),
        (
            "global batch",
            f"{stage.run.batch_size:,} = {stage.data.batch_size} x {gpus} GPUs x {batches} accumulation steps",
        ),
        ("one sample, forward", f"{_flops(costs.forward_flops)}; its latents {_flops(costs.encode_flops)}"),
        ("one step", _flops(costs.step_flops)),
        ("memory per GPU", f"{total:,.1f} GiB"),
        ("  of weights and optimiser", f"{costs.weights_bytes / gib:,.1f} GiB{sharded}"),
        ("  of activations", f"{costs.activations_bytes / gib:,.1f} GiB"),
        (
            "duration",
            f"{_duration(days)} for {stage.run.steps:,} steps on {gpus} H100, at {ASSUMED_MFU:.0%} MFU",
        ),
    ]


def _flops(count: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12)):
        if count >= size:
            return f"{count / size:,.2f} {unit}FLOPs"
    return f"{count / 1e9:,.2f} GFLOPs"


def _duration(days: float) -> str:
    if days >= 1:
        return f"{days:,.1f} days"
    return f"{days * 24:,.1f} hours" if days * 24 >= 1 else f"{days * 86400:,.0f} seconds"


def train_on_ray(
    stage: Stage,
    data: str,
    out: Path,
    *,
    workers: int,
    images: str | None = None,
    init: Path | None = None,
    address: str | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Path:
    """The same on Ray workers, one per GPU, or per CPU with `device` cpu. `out`, `data` and `init` have to be on a
    file system that all of them see. A failed group is started anew and goes on from the newest checkpoint, but not
    where the next one would only fail in the same way.

    Ctrl-C and SIGTERM reach the workers as a file, RUN/stop. Raises UserError, RunStopped and KeyboardInterrupt as
    `train`.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.cluster import connected, usual_device

    class NoUseInRestarts(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            """Ray gives up a run whose callback raises."""
            causes = [getattr(error, "_base_exc", error) for error in worker_exceptions.values()]
            if all(isinstance(cause, _LASTING) for cause in causes):
                raise _told(causes[0], out)

    callback: Any = NoUseInRestarts()
    settings: dict[str, Any] = {
        "stage": stage, "data": os.path.abspath(data), "out": out.absolute(), "init": init and init.absolute(),
        "images": images and os.path.abspath(images),
    }  # fmt: skip
    try:
        gradient_accumulation_steps(stage, workers)
    except ValueError as error:
        raise UserError(str(error)) from error
    with Reporter(stage.name, stage.run.steps, unit="steps", quiet=quiet) as reporter, ExitStack() as stack:
        reporter.waiting(f"connecting to Ray at {address}" if address else "starting Ray")
        stack.enter_context(connected(address))
        gpu = (device or usual_device()) == "cuda"
        settings["device"] = "cuda" if gpu else "cpu"
        _assure_room(workers, "GPU" if gpu else "CPU", local=not (address or os.environ.get("RAY_ADDRESS")))
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config=settings,
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            run_config=RunConfig(
                name="ray",
                storage_path=str(out.absolute()),
                failure_config=FailureConfig(max_failures=RESTARTS),
                callbacks=[callback],
            ),
        )
        _announce(stage, out, quiet=quiet)
        reporter.waiting("starting the workers")
        stop = StopRequest()
        try:
            with _followed(out / METRICS, _Progress(reporter)):
                _fit(trainer.fit, stop, out / STOP)
        except Exception as error:  # Ray's own kinds differ between its versions
            cause = getattr(error, "controller_failure", None)
            if stop.asked():
                note(str(cause or error).strip().splitlines()[-1])
                raise KeyboardInterrupt from error
            raise cause if isinstance(cause, UserError) else RunStopped(_ray_failure(error)) from error
    model = finished(out)
    assert model is not None
    return model


def _fit(fit: Callable[[], Any], stop: StopRequest, file: Path) -> None:
    """Call `fit` in a thread, because in the main thread Ray answers Ctrl-C by ending its workers at once; hand on a
    request to stop as a file. Raises what `fit` does."""
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
    """What one of Ray's workers does; Ray has made the process group."""
    run_stage(
        settings["stage"],
        settings["data"],
        settings["out"],
        images=settings["images"],
        init=settings["init"],
        device=settings["device"],
        stop=StopRequest(settings["out"] / STOP),
    )


def _assure_room(workers: int, kind: str, *, local: bool) -> None:
    """Raise UserError where workers would wait for ever; say so where a cluster may yet grow."""
    import ray

    there = ray.cluster_resources().get(kind, 0)
    if there < workers:
        sentence = f"{workers} workers take a {kind} each, and Ray has {there:g}"
        if local:
            raise UserError(f"{sentence}: ask for fewer (--ray-workers), or name a cluster (--address)")
        note(f"{sentence}: waiting for more")


@contextmanager
def _followed(metrics: Path, on_log: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Call `on_log`, in a thread, with the newest line of a log that others write."""
    over = threading.Event()

    def follow() -> None:
        last = False
        while not last:
            last = over.wait(_FOLLOWED_EVERY_S)
            with suppress(OSError, ValueError, IndexError):  # not there yet, or torn
                on_log(json.loads(_tail(metrics).splitlines()[-1]))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _tail(path: Path) -> bytes:
    """The last `_LINE_BYTES` of a file, without reading what is before them."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LINE_BYTES))
        return file.read()


def _ray_failure(error: Exception) -> str:
    """The last line of what each rank says, or of the error itself."""
    failures = getattr(error, "worker_failures", {})
    said = {f"rank {rank}: ": failure for rank, failure in failures.items()} or {"": error}
    lines = [f"{whose}{str(failure).strip().splitlines()[-1]}" for whose, failure in said.items()]
    return f"training on Ray failed{f' after {RESTARTS} restarts' if failures else ''}: {'; '.join(lines)}"


def _told(error: Exception, out: Path) -> UserError:
    """The same for the command line: a wrong request, or a run that stopped on its way."""
    if isinstance(error, UserError):
        return error
    sentence = str(error).strip()
    if sentence.startswith("Caught "):  # by a worker of the loader, which hands on its traceback
        sentence = sentence.splitlines()[-1].partition(": ")[2]
    if isinstance(error, ValueError | FileNotFoundError):
        return UserError(sentence)
    if isinstance(error, OSError):
        sentence = f"{sentence}. Of its checkpoints, {describe_latest(out / CHECKPOINTS)}"
    return RunStopped(sentence)


class _Progress:
    """The line of progress, from lines of the log."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._step = reporter, 0

    def __call__(self, record: Mapping[str, Any]) -> None:
        if record["step"] <= self._step:  # seen, or of a group of workers that was started anew
            return
        parts = [
            f"loss {record['loss']:.4f}",
            f"{record['samples_per_s']:.2f} samples/s",
            f"data wait {record['data_wait_s']:.3f} s of {record['step_s']:.3f} s",
            f"{record['memory_bytes'] / 2**30:.1f} GiB",
        ]
        if "mfu" in record:
            parts.append(f"{record['mfu']:.0%} MFU")
        self._reporter.advance(int(record["step"]) - self._step, ", ".join(parts))
        self._step = int(record["step"])
