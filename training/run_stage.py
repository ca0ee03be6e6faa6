"""Run one stage from shards to a saved model, launched by python, torchrun or Ray Train.

RUN/stage.json           resolved configuration, frozen models' digests, versions
RUN/index.json           shards it reads; RUN/shards.index, images.index    byte offsets of their samples
RUN/metrics.jsonl, tensorboard/, samples/    metrics and previews
RUN/checkpoints/         to resume from
RUN/model/               the trained model with averaged weights; exists once the run is finished.
                         LoRA stages write RUN/lora.safetensors instead
"""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from clipmill import storage
from clipmill.addresses import without_credentials
from clipmill.atomic import write_text
from clipmill.errors import UserError
from clipmill.formats import RUN
from clipmill.resume import check_same
from svd.checkpoint import CONFIG, save_model
from svd.lora import save_lora
from svd.model import Model
from svd.unet import UNet
from training.cache_latents import weight_digests
from training.data import Batches, Joint, Shards, loader
from training.distributed import Process, barrier, join, once, resolve
from training.estimate import estimate
from training.init_model import MODEL, init_model, with_unet
from training.loop import Hooks, Loader, run_loop
from training.preview import preview
from training.run_folder import LORA, SETTINGS, Location, below, local_model, opened_run
from training.shard_index import index_shards
from training.shards import ShardIndex
from training.stages import Stage
from training.stopping import StopRequest
from training.validate_shards import latent_shape, validate_shards

Own = Callable[[], AbstractContextManager[Callable[[], None]]]
"""Owns the run folder for a block, in which the function that it yields raises if another run owns it by now."""

_PACKAGES = ("torch", "torchdata", "safetensors", "av", "numpy", "open-clip-torch", "ray")


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Result of a finished run."""

    model: Path | str
    """RUN/model, or the adapters of a LoRA stage; an address if the run is in a store."""
    steps: int
    resumed_at: int


def run_stage(
    stage: Stage,
    shards: Shards,
    out: Path | str,
    *,
    images: Shards | None = None,
    init: Path | str | None = None,
    model: Model | None = None,
    device: str | None = None,
    on_log: Callable[[Mapping[str, Any]], None] | None = None,
    stop: StopRequest | None = None,
    own: Own | None = None,
) -> StageResult:
    """Train `stage` on `shards` to its last step, resuming an earlier run in `out`. `shards`, `out` and `init` may be
    fsspec URLs.

    `images` are image shards for joint training (`run.image_share`); `model` is the initial model, instead of `init`.
    `own` is called on the first rank when the request is known to be valid, before anything is written.
    Raises UserError, OSError, CheckpointError and NonFinite for failures; checkpoints are kept. Raises Stopped if
    signals or `stop` end it early, with a checkpoint.
    """
    process = join(device)
    torch.manual_seed(stage.run.seed)
    with opened_run(out, process) as run:
        settings = check_settings(stage, run.path, address=run.address)
        if model is None:
            with local_model(init) as path:
                model = init_model(stage, path)
        models = _check_models(model, run.address, settings or {})
        for network in model.networks().values():
            network.to(process.device)
        batches = open_loader(stage, model, shards, images, process, run.path, digests=models)
        with _owned(own) as check, closing(batches):
            if process.is_main:
                _write_settings(
                    stage,
                    run.path,
                    shards=_shown(shards),
                    init=None if init is None else _shown(init),
                    world_size=process.world_size,
                    models=models,
                )
            run.publish()
            hooks = Hooks(
                on_log=on_log,
                preview=partial(preview, run.path / "samples"),
                check=check,
                stop=stop or StopRequest(),
                flops_per_step=_flops(stage, model, latents=batches.latents) if process.device.type == "cuda" else None,
            )
            result = run_loop(stage, model, cast("Loader", batches), run, process, hooks=hooks)
            check()
            exported = run.publish_model(_export(stage, model, run.path, process), CONFIG)
            run.publish()
            barrier()  # other ranks may read the model next
    return StageResult(model=exported, steps=result.steps, resumed_at=result.resumed_at)


@contextmanager
def _owned(own: Own | None) -> Iterator[Callable[[], None]]:
    """Own the run on its first rank; yields a check of that for all ranks. What it raises there, it raises on all."""
    if own is None:
        yield lambda: None
        return
    checks: list[Callable[[], None]] = []

    def check() -> None:
        once(lambda: [of_first_rank() for of_first_rank in checks])

    with ExitStack() as stack:
        once(lambda: checks.append(stack.enter_context(own())))
        yield check


def open_loader(
    stage: Stage,
    model: Model,
    shards: Shards,
    images: Shards | None,
    process: Process,
    out: Path,
    *,
    digests: Mapping[str, str],
) -> Batches | Joint:
    """Batches of one rank; `digests` are those of the model. Raises UserError as `training.data.loader` and
    `validate_shards`, and for joint training without image shards.
    """
    share, pin = stage.run.image_share, process.device.type == "cuda"
    if (share > 0) != (images is not None):
        raise UserError(
            f"joint training requires run.image_share above 0 and image shards (--images), got "
            f"run.image_share={share:g}, images={images!r}"
        )

    def opened(what: str, where: Shards) -> Batches:
        def indexed() -> ShardIndex:
            index = index_shards(where, cache=out / f"{what}.index")
            validate_shards(index, stage, model, digests, pictures=what == "images")
            return index

        # Index on one rank for all: each would otherwise read 100,000 tar headers.
        return loader(
            once(indexed),
            stage.data,
            rank=process.rank,
            world_size=process.world_size,
            latent_shape=latent_shape(stage, model),
            pin_memory=pin,
        )

    videos = opened("shards", shards)
    return videos if images is None else Joint(videos, opened("images", images), share=share)


def finished(out: Location) -> Location | None:
    """The model of a finished run; None otherwise."""
    for model, file in ((MODEL, f"{MODEL}/{CONFIG}"), (LORA, LORA)):
        if storage.exists(*storage.filesystem(f"{out}/{file}")):
            return below(out, model)
    return None


def _export(stage: Stage, model: Model, out: Path, process: Process) -> Path:
    """Save the model, gathered if sharded; a collective, so all ranks must call it."""
    lora = stage.model.trainable == "lora"
    target = out / LORA if lora else out / MODEL
    if resolve(stage.run.strategy, model.unet, process.world_size) == "fsdp":
        whole = get_model_state_dict(model.unet, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if not process.is_main:
            return target
        with torch.device("meta"):
            unet = UNet(model.unet.config)
        if lora:
            from svd.lora import add_lora

            add_lora(unet, rank=stage.model.lora_rank)
        unet.load_state_dict(whole, assign=True)
        model = with_unet(model, unet)
    if process.is_main:
        if lora:
            save_lora(model.unet, target)
        else:
            unfinished = out / f"{MODEL}.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            save_model(model, unfinished)
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
    return target


def _flops(stage: Stage, model: Model, *, latents: bool) -> float:
    """Model FLOPs per step for the MFU; includes encoding when training on frames."""
    costs = estimate(stage, autoencoder=model.autoencoder.config)
    return costs.model_flops + (0 if latents else stage.run.batch_size * costs.encode_flops)


def check_settings(stage: Stage, out: Path | str, *, address: str | None = None) -> dict[str, Any] | None:
    """RUN/stage.json; None if missing. Raises UserError if `out` contains a run of another stage, or one with settings
    that differ beyond `clipmill.resume.MAY_CHANGE`; it names `address`, by default `out`.
    """
    address = address or without_credentials(str(out))
    settings = read_settings(out)
    if settings is None:
        return None
    before, now = settings["config"], stage.model_dump(mode="json")
    if before["name"] != now["name"]:
        raise UserError(
            f"{address} contains a run of stage {before['name']!r}, expected {now['name']!r}: choose another --out"
        )
    check_same(address, before, now, new_keys=True)
    return settings


def read_settings(out: Path | str) -> dict[str, Any] | None:
    """RUN/stage.json; None if missing. Raises UserError if it is damaged, or of another format version."""
    fs, path = storage.filesystem(f"{out}/{SETTINGS}")

    def parse(settings: dict[str, Any]) -> dict[str, Any]:
        RUN.check(settings, without_credentials(str(out)))
        if not isinstance(settings["config"]["name"], str):
            raise TypeError("expected the name of a stage")
        return settings

    return storage.read_json_if_exists(fs, path, parse)


def _check_models(model: Model, address: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the frozen parts. Raises UserError if they differ from the original ones: their paths may change,
    their weights must not.
    """
    models = weight_digests(model)
    before = settings.get("models")
    if isinstance(before, dict):
        check_same(address, {"models": before}, {"models": models}, new_keys=True)
    return models


def _write_settings(stage: Stage, out: Path, **more: Any) -> None:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    config, python = stage.model_dump(mode="json"), sys.version.split()[0]
    content = RUN.describe(config, **more, git=_git(), versions=versions, python=python)
    write_text(out / SETTINGS, json.dumps(content, indent=2) + "\n")


def _shown(shards: Shards) -> str:
    """The addresses of shards without credentials."""
    entries = [shards] if isinstance(shards, str | Path) else list(shards)
    return ", ".join(without_credentials(str(entry)) for entry in entries)


def _git() -> str | None:
    """Git revision of this code, with a plus if modified; None outside a repository."""
    run = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
    try:
        revision = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        return revision + ("+" if run(["git", "status", "--porcelain", "-uno"]).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None
