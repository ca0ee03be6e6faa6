"""The training loop: one for all stages, on one process or many (App. D)."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from svd.lora import add_lora
from svd.model import NEEDS, Model
from svd.unet import Block, UNet
from training.batch import Batch
from training.checkpoint import Checkpoints, State
from training.distributed import Ranks, accumulating, distribute, gather, resolve, whole
from training.ema import Ema
from training.metrics import Log, Meter, by_noise_level, memory_bytes, peak_flops
from training.objective import Losses, Objective, seed_of
from training.optimizer import build_optimizer, lr_factor, set_lr
from training.stages import Stage


class NonFinite(Exception):
    """A loss or a gradient that is no number. Nothing was updated."""


class Loader(Protocol):
    """Batches without end, and where they have got to."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What happens beside training."""

    on_log: Callable[[Mapping[str, Any]], None] | None = None
    """Called on the first rank with each line of metrics.jsonl."""
    preview: Callable[[Model, Stage, Batch, int, Log | None], None] | None = None
    """Called on all ranks every `run.sample_every` steps, the network holding its averaged weights, with a batch and
    the number of steps."""
    flops_per_step: float | None = None
    """Of all ranks, for the share of the device's peak."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run at its end."""

    steps: int
    resumed_at: int
    """The step of the checkpoint that this process went on from; 0 for a new run."""


def train(
    stage: Stage, model: Model, loader: Loader, out: Path, ranks: Ranks, *, hooks: Hooks | None = None
) -> Trained:
    """Train `model.unet` in place up to `stage.run.steps`, from the newest checkpoint in `out` if there is one.

    At the end the network holds its averaged weights, where the stage keeps an average. Raises NonFinite,
    CheckpointError, and ValueError where stage, model and number of ranks do not fit together.
    """
    run, hooks = stage.run, hooks or Hooks()
    unet, accumulate = model.unet.to(ranks.device), accumulation(stage, ranks.count)
    choose_trained(unet, stage)
    unet.checkpointing = stage.model.checkpointing
    if run.compile:
        for block in (module for module in unet.modules() if isinstance(module, Block)):
            block.compile()
    strategy = resolve(run.strategy, unet, ranks.count)
    network = distribute(unet.train(), strategy, bf16=run.precision == "bf16", unused=run.image_share > 0)
    optimizer = build_optimizer(unet, stage.optimizer)
    named = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
    ema = Ema(named, stage.optimizer.ema) if stage.optimizer.ema is not None else None
    state = State(network=unet, optimizer=optimizer, ema=ema)
    checkpoints = Checkpoints(out / "checkpoints", ranks, keep_last=run.keep_last, keep_every=run.keep_every)
    first = _resume(checkpoints, state, loader)
    objective, meter = Objective(model, stage), Meter(ranks.device)
    log = Log(out, first) if ranks.first else None
    batches = iter(loader) if first < run.steps else iter(())

    for step in range(first, run.steps):
        set_lr(optimizer, factor := lr_factor(step, run.steps, stage.optimizer))
        seen: list[tuple[Batch, Losses]] = []
        for micro in range(accumulate):
            batch = _next(batches, meter).to(ranks.device)
            seeds = _seeds(stage, step, micro, len(batch), ranks)
            with accumulating(network, last=micro == accumulate - 1):
                with _autocast(stage, ranks):
                    losses = objective(network, batch, seeds)
                (losses.loss_B.mean() / accumulate).backward()
            meter.add(losses.loss_B, losses.sigma_B)
            seen.append((batch, losses))
        norm = whole(nn.utils.clip_grad_norm_(named.values(), stage.optimizer.clip_norm))
        _stop_unless_finite(step, norm, seen)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update(step + 1)
        done, meter.steps = step + 1, meter.steps + 1

        if done % run.log_every == 0 or done == run.steps:
            record = _record(done, stage, meter, ranks, hooks, lr=factor * stage.optimizer.lr, norm=norm)
            if log is not None:
                log.write(record)
                if hooks.on_log is not None:
                    hooks.on_log(record)
            meter.reset()
        if hooks.preview is not None and run.sample_every and done % run.sample_every == 0:
            unet.eval()
            with ema.swapped() if ema is not None else nullcontext():
                hooks.preview(model, stage, batch, done, log)
            unet.train()
        if done % run.save_every == 0 or done == run.steps:
            checkpoints.save(done, state, loader.state_dict(), {"stage": stage.name})
        checkpoints.finish_if_done()

    checkpoints.wait()
    if log is not None:
        log.close()
    if ema is not None:
        ema.swap()
    unet.eval()
    return Trained(steps=run.steps, resumed_at=first)


def accumulation(stage: Stage, ranks: int) -> int:
    """Batches per rank that make a step. Raises ValueError where they do not come out even."""
    at_once = stage.data.batch_size * ranks
    if stage.run.batch_size % at_once:
        raise ValueError(
            f"run.batch_size {stage.run.batch_size} does not divide into batches of data.batch_size "
            f"{stage.data.batch_size} on {ranks} ranks: a multiple of {at_once} does"
        )
    return stage.run.batch_size // at_once


def choose_trained(unet: UNet, stage: Stage) -> None:
    """Freeze what the stage does not train, and what its batches cannot give a gradient to."""
    trained = stage.model.trained
    if trained == "lora":
        add_lora(unet, rank=stage.model.lora_rank)
        return
    unet.requires_grad_(trained == "all")
    if trained == "temporal":
        for _, parameter in unet.temporal_parameters():
            parameter.requires_grad_(True)
    elif trained == "noise_embedding":
        unet.noise_embedding.requires_grad_(True)
    if NEEDS[stage.task] == "image_encoder" and stage.task != "interpolation":
        for _, parameter in unet.idle_parameters(context_tokens=1):
            parameter.requires_grad_(False)


def _resume(checkpoints: Checkpoints, state: State, loader: Loader) -> int:
    """How many steps were done; network, optimiser, average and data are put back there."""
    latest = checkpoints.latest()
    if latest is None:
        return 0
    step, place = checkpoints.load(latest, state)
    if place is not None:
        loader.load_state_dict(place)
    return step


def _next(batches: Iterator[Batch], meter: Meter) -> Batch:
    started_s = time.perf_counter()
    batch = next(batches)
    meter.data_wait_s += time.perf_counter() - started_s
    return batch


def _seeds(stage: Stage, step: int, micro: int, samples: int, ranks: Ranks) -> list[int]:
    """Of a rank's samples: what rank r of R sees as its i-th is sample i R + r of the step, as for the loader."""
    before = micro * samples * ranks.count
    return [seed_of(stage.run.seed, step, before + i * ranks.count + ranks.rank) for i in range(samples)]


def _autocast(stage: Stage, ranks: Ranks) -> torch.autocast:
    return torch.autocast(ranks.device.type, torch.bfloat16, enabled=stage.run.precision == "bf16")


def _stop_unless_finite(step: int, norm: Tensor, seen: list[tuple[Batch, Losses]]) -> None:
    """Raise NonFinite on all ranks, with the samples, where any rank has a loss or a gradient that is no number."""
    finite = torch.stack([losses.loss_B.detach().isfinite().all() for _, losses in seen]).all() & norm.isfinite()
    every = finite.to(torch.int32)
    dist.all_reduce(every, dist.ReduceOp.MIN)
    if every.item():
        return
    bad = [
        f"{key} (loss {loss:g}, sigma {sigma:.3g})"
        for batch, losses in seen
        for key, loss, sigma in zip(batch.keys, losses.loss_B.tolist(), losses.sigma_B.tolist(), strict=True)
        if not torch.tensor(loss).isfinite()
    ]
    named = [each for part in gather(bad) for each in part]
    keys = [key for part in gather([key for batch, _ in seen for key in batch.keys]) for key in part]
    what = f"the loss of {', '.join(named)}" if named else f"a gradient of the batch {', '.join(keys)}"
    raise NonFinite(f"step {step + 1}: {what} is not finite. The weights are as they were before this step")


def _record(
    done: int, stage: Stage, meter: Meter, ranks: Ranks, hooks: Hooks, *, lr: float, norm: Tensor
) -> dict[str, Any]:
    """A line of the log, of all ranks together since the line before."""
    sums = meter.sums().clone()
    dist.all_reduce(sums)
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
        "memory_bytes": memory_bytes(ranks.device),
    }
    peak = peak_flops(ranks.device)
    if peak is not None and hooks.flops_per_step is not None:
        record["peak_share"] = hooks.flops_per_step * meter.steps / seconds / (peak * ranks.count)
    return record


def write_settings(stage: Stage, out: Path, about: Mapping[str, Any]) -> None:
    """Put the resolved configuration, and what it ran with, beside the checkpoints."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "stage.json").write_text(json.dumps({"stage": stage.to_dict(), **about}, indent=2) + "\n")
