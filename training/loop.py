"""The training loop, shared by all stages, on one or many processes (App. D)."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipmill.errors import RunStopped, UserError
from svd.model import Model
from training.batch import Batch, without_waiting
from training.checkpoint import State, read_metadata
from training.contents import Contents, check_contents, digest, write_contents
from training.distributed import Process, accumulating, all_reduce, distribute, full_tensor, gather, reshard, resolve
from training.ema import Ema
from training.metrics import Log, Meter, by_noise_level, memory_bytes, peak_flops
from training.objective import Losses, Objective
from training.optimizer import build_optimizer, lr_factor, set_lr
from training.run_folder import RunFolder
from training.seeds import seed_of
from training.stages import Stage
from training.stopping import Stopped, StopRequest
from training.trainable import compile_blocks, freeze_untrained


class NonFinite(RunStopped):
    """Non-finite loss or gradient; the weights were not updated."""


class Loader(Protocol):
    """Infinite stream of batches with a position."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    def skip(self, samples: int) -> None:
        """Start after about this many samples over all ranks."""

    def contents(self) -> Contents:
        """The shards it reads."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Callbacks run during training."""

    on_log: Callable[[Mapping[str, Any]], None] | None = None
    """Called on the first rank with each line of metrics.jsonl."""
    preview: Callable[[Model, Stage, Batch, int, Log | None], None] | None = None
    """Called on all ranks every `run.sample_every` steps, while the network holds its averaged weights, with the last
    batch (of videos, in joint training) and the step count.
    """
    flops_per_step: float | None = None
    """Model FLOPs per step over all ranks, for the MFU."""
    check: Callable[[], None] = lambda: None
    """Called on all ranks before they write a checkpoint; raises if another run owns the folder."""
    stop: StopRequest = field(default_factory=StopRequest)
    """Polled after each step on all ranks; if any rank returns True, all of them stop."""


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """Result of a finished run."""

    steps: int
    resumed_at: int
    """Step of the checkpoint this process resumed from; 0 for a new run."""


def run_loop(
    stage: Stage,
    model: Model,
    loader: Loader,
    out: Path | RunFolder,
    process: Process,
    *,
    hooks: Hooks | None = None,
) -> LoopResult:
    """Train `model.unet` in place up to `stage.run.steps`, resuming from the newest checkpoint in `out` if any.

    SIGINT, SIGTERM or `hooks.stop` end the run after the current step: it saves a checkpoint and raises Stopped.

    Afterwards the network holds its averaged weights if the stage keeps an average. Raises NonFinite, CheckpointError,
    and UserError if stage, model and number of ranks are incompatible.
    """
    hooks = hooks or Hooks()
    folder = out if isinstance(out, RunFolder) else RunFolder(out, process)
    trainer, run = _Trainer(stage, model, folder, process, hooks), stage.run
    first = trainer.resume(loader)
    batches = iter(loader) if first < run.steps else iter(())
    with (
        hooks.stop.heeding_signals(log_request=process.is_main),
        trainer.log(first) as log,
        trainer.checkpoints.settled(),
    ):
        for done in range(first + 1, run.steps + 1):
            asked = trainer.step(done - 1, batches)
            last = done == run.steps
            if last or done % run.log_every == 0:
                trainer.report(done, log)
            if last or asked or done % run.save_every == 0:
                hooks.check()
                rank_state = {"data": loader.state_dict(), "meter": trainer.meter.state_dict()}
                trainer.checkpoints.save(done, trainer.state, rank_state, trainer.metadata)
            if asked and not last:
                trainer.stop(done)
            if run.sample_every and done % run.sample_every == 0:
                trainer.preview(done, log)
            trainer.checkpoints.finish_if_done()
    if trainer.ema is not None:
        trainer.ema.swap()
    model.unet.eval()
    return LoopResult(steps=run.steps, resumed_at=first)


class _Trainer:
    """Components of a run, built once."""

    def __init__(self, stage: Stage, model: Model, folder: RunFolder, process: Process, hooks: Hooks) -> None:
        self.stage, self.model, self.folder, self.process, self.hooks = stage, model, folder, process, hooks
        run, unet = stage.run, model.unet.to(process.device)
        self.accumulation_steps = gradient_accumulation_steps(stage, process.world_size)
        freeze_untrained(unet, stage)
        unet.checkpointing = stage.model.checkpointing
        if run.compile:
            compile_blocks(unet)
        strategy = resolve(run.strategy, unet, process.world_size)
        self.network = distribute(unet.train(), strategy, bf16=run.precision == "bf16", unused=run.image_share > 0)
        self.optimizer = build_optimizer(unet, stage.optimizer)
        self.trained = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
        self.ema = Ema(self.trained, stage.optimizer.ema) if stage.optimizer.ema is not None else None
        self.state = State(network=unet, trained=self.trained, optimizer=self.optimizer, ema=self.ema)
        self.checkpoints = folder.checkpoints(keep_last=run.keep_last, keep_every=run.keep_every)
        self.objective, self.meter = Objective(model, stage), Meter(process.device)
        self.lr_factor, self.norm = 0.0, torch.zeros(())
        self.metadata: dict[str, Any] = {}
        """Metadata stored in a checkpoint."""
        self.shown: Batch | None = None
        """Last batch for previews; videos only in joint training."""

    def resume(self, loader: Loader) -> int:
        """Restore network, optimizer, average and data from the newest checkpoint; return its step."""
        # Use the first rank's listing: on a network file system other ranks may see stale files after a restart.
        latest = gather(self.checkpoints.latest())[0]
        contents, workers = loader.contents(), self.stage.data.workers
        self.metadata = {"stage": self.stage.name, "data": digest(contents), "workers": workers}
        if latest is None:
            if self.process.is_main:
                write_contents(self.folder.path, contents)
            return 0
        latest = self.checkpoints.fetched(latest)
        before = read_metadata(latest).get("data")
        check_contents(self.folder.path, before, contents, address=self.folder.address)
        metadata, rank_state = self.checkpoints.load(latest, self.state)
        step = int(metadata["step"])
        if rank_state is not None:
            self.meter.load_state_dict(rank_state["meter"])
        if rank_state is not None and metadata.get("workers", workers) == workers:
            loader.load_state_dict(rank_state["data"])
        else:  # the assignment of samples depends on the number of ranks and workers
            loader.skip(step * self.stage.run.batch_size)
        return step

    def step(self, step: int, batches: Iterator[Batch]) -> bool:
        """Run one optimizer step. Returns whether any rank was asked to stop."""
        self.lr_factor = lr_factor(step, self.stage.run.steps, self.stage.optimizer)
        set_lr(self.optimizer, self.lr_factor)
        seen: list[tuple[Batch, Losses]] = []
        for micro in range(self.accumulation_steps):
            batch = _next(batches, self.meter).to(self.process.device)
            seeds = _seeds(self.stage, step, micro, len(batch), self.process)
            with accumulating(self.network, last=micro == self.accumulation_steps - 1):
                with _autocast(self.stage, self.process):
                    losses = self.objective(self.network, batch, seeds)
                (losses.loss_B.mean() / self.accumulation_steps).backward()
            seen.append((batch, losses))
            if not (batch.image_only and self.model.unet.config.temporal):
                self.shown = batch
        self.norm = full_tensor(nn.utils.clip_grad_norm_(self.trained.values(), self.stage.optimizer.clip_norm))
        asked = _stop_unless_finite(step, self.norm, seen, asked=self.hooks.stop.asked())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(step + 1)
        for _, losses in seen:
            self.meter.add(losses.loss_B, losses.sigma_B)
        self.meter.steps += 1
        return asked

    def stop(self, done: int) -> None:
        """Wait for the checkpoint after `done` steps, then raise Stopped; CheckpointError if writing it failed."""
        self.checkpoints.wait()
        raise Stopped(
            f"stopped after step {done} of {self.stage.run.steps}; the same command resumes from its checkpoint, "
            f"{self.checkpoints.latest_address()}"
        )

    @contextmanager
    def log(self, first: int) -> Iterator[Log | None]:
        """Open the log of a run that has done `first` steps, on the first rank only."""
        log = Log(self.folder.path, first) if self.process.is_main else None
        try:
            yield log
        finally:
            if log is not None:
                log.close()

    def report(self, done: int, log: Log | None) -> None:
        """Write a log line with metrics of all ranks since the last one."""
        lr = self.lr_factor * self.stage.optimizer.lr
        record = _record(done, self.stage, self.meter, self.process, self.hooks, lr=lr, norm=self.norm)
        self.meter.reset()
        if log is not None:
            log.write(record)
            if self.hooks.on_log is not None:
                self.hooks.on_log(record)

    def preview(self, done: int, log: Log | None) -> None:
        """Call the preview hook on the averaged network."""
        if self.hooks.preview is None or self.shown is None:
            return
        self.model.unet.eval()
        with ExitStack() as around:
            around.enter_context(_autocast(self.stage, self.process))
            if self.ema is not None:
                around.enter_context(self.ema.swapped())
            if (
                self.stage.run.compile
            ):  # run previews eagerly: compiling for a few passes of other shapes is not worth it
                around.enter_context(torch.compiler.set_stance("force_eager"))
            self.hooks.preview(self.model, self.stage, self.shown, done, log)
            reshard(self.model.unet)
        self.model.unet.train()


def gradient_accumulation_steps(stage: Stage, world_size: int) -> int:
    """Batches per rank and step. Raises UserError if the batch size is not divisible."""
    at_once = stage.data.batch_size * world_size
    if stage.run.batch_size % at_once:
        raise UserError(
            f"run.batch_size {stage.run.batch_size} is not divisible into batches of data.batch_size "
            f"{stage.data.batch_size} on {world_size} ranks; use a multiple of {at_once}"
        )
    return stage.run.batch_size // at_once


def _next(batches: Iterator[Batch], meter: Meter) -> Batch:
    started_s = time.perf_counter()
    batch = next(batches)
    meter.data_wait_s += time.perf_counter() - started_s
    return batch


def _seeds(stage: Stage, step: int, micro: int, samples: int, process: Process) -> list[int]:
    """Seeds of a rank's samples: the i-th sample of rank r of R is sample i R + r of the step, as in the loader."""
    before = micro * samples * process.world_size
    return [seed_of(stage.run.seed, step, before + i * process.world_size + process.rank) for i in range(samples)]


def _autocast(stage: Stage, process: Process) -> torch.autocast:
    return torch.autocast(process.device.type, torch.bfloat16, enabled=stage.run.precision == "bf16")


def _stop_unless_finite(step: int, norm: Tensor, seen: list[tuple[Batch, Losses]], *, asked: bool) -> bool:
    """Raise NonFinite on all ranks, naming the samples, if any rank has a non-finite loss or gradient. Returns whether
    any rank was `asked` to stop; both flags share one all-reduce.
    """
    finite = torch.stack([losses.loss_B.detach().isfinite().all() for _, losses in seen]).all() & norm.isfinite()
    goes_on = without_waiting(torch.tensor(not asked), finite.device)
    every = torch.stack([finite, goes_on]).to(torch.int32)
    all_reduce(every, dist.ReduceOp.MIN)
    all_finite, all_go_on = every.tolist()
    if all_finite:
        return not all_go_on
    bad = [
        f"{key} (loss {loss:g}, sigma {sigma:.3g})"
        for batch, losses in seen
        for key, loss, sigma in zip(batch.keys, losses.loss_B.tolist(), losses.sigma_B.tolist(), strict=True)
        if not torch.tensor(loss).isfinite()
    ]
    named = [sample for rank_samples in gather(bad) for sample in rank_samples]
    keys = [key for part in gather([key for batch, _ in seen for key in batch.keys]) for key in part]
    what = f"the loss of {', '.join(named)}" if named else f"a gradient of the batch {', '.join(keys)}"
    raise NonFinite(f"step {step + 1}: {what} is not finite. The weights are as they were before this step")


def _record(
    done: int, stage: Stage, meter: Meter, process: Process, hooks: Hooks, *, lr: float, norm: Tensor
) -> dict[str, Any]:
    """Log line with metrics of all ranks since the last one."""
    sums = meter.sums().clone()
    all_reduce(sums)
    seconds = meter.seconds()
    record: dict[str, Any] = {
        "step": done,
        "loss": float(sums[0].sum() / sums[1].sum()),
        "loss_by_ln_sigma": by_noise_level(sums),
        "lr": lr,
        "grad_norm": float(norm),
        "samples_per_s": meter.steps * stage.run.batch_size / seconds,
        "step_s": seconds / meter.steps,
        "data_wait_s": meter.data_wait_s / meter.steps,
        "memory_bytes": memory_bytes(process.device),
    }
    peak = peak_flops(process.device)
    if peak is not None and hooks.flops_per_step is not None:
        record["mfu"] = hooks.flops_per_step * meter.steps / seconds / (peak * process.world_size)
    return record
