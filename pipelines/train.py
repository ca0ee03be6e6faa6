"""`clipmill train`: train one stage in this process or under torchrun."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from clipmill.addresses import without_credentials
from clipmill.config import read_yaml
from clipmill.errors import RunStopped, UserError
from pipelines.fence import owned, refuse_unless_silent
from pipelines.printable import log_to_stderr
from pipelines.progress import Reporter, note
from training.estimate import ASSUMED_MFU, estimate
from training.loop import gradient_accumulation_steps
from training.run_folder import Location, describe_latest, latest_step
from training.run_stage import run_stage
from training.stages import Stage, overlay, parse_setting
from training.stopping import Stopped


def resolve_stage(name: str, config: Path | None = None, settings: Sequence[str] = ()) -> Stage:
    """Resolve a preset, then apply a YAML file, then `group.key=value` settings. Raises UserError."""
    stage = Stage.preset(name)
    if config is not None:
        stage = overlay(stage, read_yaml(str(config)), origin=str(config))
    for setting in settings:
        stage = overlay(stage, parse_setting(setting), origin="--set")
    return stage


def train(
    stage: Stage,
    data: str,
    out: Location,
    *,
    images: str | None = None,
    init: Path | str | None = None,
    device: str | None = None,
    take_over: bool = False,
    quiet: bool = False,
) -> Location:
    """Train or resume one stage; returns its model. `data`, `images`, `out` and `init` may be fsspec URLs.

    `take_over` stops a live run in `out` at its next checkpoint. Raises UserError for invalid inputs and for a run in
    use, RunStopped (a UserError) for failures during the run, and KeyboardInterrupt if Ctrl-C or SIGTERM ended it after
    a checkpoint.
    """
    log_to_stderr()
    is_main = int(os.environ.get("RANK", "0")) == 0
    quiet = quiet or not is_main
    try:
        with Reporter(stage.name, stage.run.steps, unit="steps", quiet=quiet) as reporter:
            if is_main and not take_over:
                refuse_unless_silent(str(out), reporter.waiting)
            announce(stage, out, quiet=quiet)
            reporter.waiting("loading the model and reading the shards")
            run = run_stage(
                stage,
                data,
                out,
                images=images,
                init=init,
                device=device,
                on_log=Progress(reporter),
                own=partial(owned_run, str(out), take_over=take_over),
            )
            return cast("Location", run.model)
    except Stopped as stopped:
        if not quiet:
            note(str(stopped))
        raise KeyboardInterrupt from stopped
    except (ValueError, OSError) as error:
        raise user_error(error, out) from error


@contextmanager
def owned_run(out: str, *, take_over: bool = False) -> Iterator[Callable[[], None]]:
    """Own the run folder for the block; yields the check of that, see `pipelines.fence`."""
    with owned(out, take_over=take_over) as fence:
        yield fence.check


def announce(stage: Stage, out: Path | str, *, quiet: bool) -> None:
    """Print the step from which a run is resumed."""
    step = None if quiet else latest_step(out)
    if step is not None:
        note(f"resuming {without_credentials(str(out))} from step {step:,} of {stage.run.steps:,}")


def dry_run(stage: Stage, gpus: int) -> list[tuple[str, str]]:
    """Cost estimate of a stage, as rows to print. Raises UserError if its batch size is not divisible among `gpus`."""
    batches = gradient_accumulation_steps(stage, gpus)
    costs = estimate(stage, gpus=gpus)
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
        ("forward pass, per sample", f"{_flops(costs.forward_flops)}, plus {_flops(costs.encode_flops)} to encode"),
        ("training step", _flops(costs.step_flops)),
        ("memory per GPU", f"{total:,.1f} GiB"),
        ("  weights and optimizer", f"{costs.weights_bytes / gib:,.1f} GiB{sharded}"),
        ("  activations", f"{costs.activations_bytes / gib:,.1f} GiB"),
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


def user_error(error: Exception, out: Path | str) -> UserError:
    """User-facing message for a failed run in `out`; for an OSError (full disk) it names the last checkpoint."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ValueError | FileNotFoundError):
        return UserError(str(error))
    left = f"; {describe_latest(out)}" if isinstance(error, OSError) else ""
    return RunStopped(f"{error}{left}")


class Progress:
    """Format the progress line from a log line."""

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
