"""`clipmill cache-latents`: precompute latent shards from clip shards, one shard per Ray task."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from clipmill import pipeline, storage
from clipmill.addresses import without_credentials
from clipmill.errors import EmptyResult, UserError
from clipmill.formats import LATENTS, SHARDS
from clipmill.resume import check_same, deciding, shortened
from clipmill.shard_folder import (
    PLAN,
    ShardRecord,
    add_latent_folder,
    index_of,
    read_index,
    read_plan,
    remove_index,
    write_index,
    write_plan,
)
from pipelines.cluster import connected, usual_device
from pipelines.counting import stream_shards
from pipelines.fence import Fence, owned, refuse_if_running
from pipelines.progress import Reporter, note
from svd.model import Model
from training.cache_latents import cache_shard, cached, check_names, weight_digests
from training.init_model import init_model
from training.notes import sentences
from training.shard_index import index_shards
from training.shards import Shard, ShardIndex
from training.stages import Stage

_OF_TRAINING = ("data.batch_size",)
"""Frame settings that only affect how a model trains on the latents, not the latents themselves."""
_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """Totals of a folder of latent shards."""

    folder: str
    shards: int
    samples: int
    bytes: int
    failed: dict[str, str]
    """SHARD/KEY -> reason."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What `cache_latents` does with each shard."""

    stage: Stage
    init: Path
    digests: dict[str, str]
    """Of the weights of the networks in `init`."""
    out: str
    """Independent of the working directory: local paths are absolute."""
    augmentations_per_clip: int


def cache_latents(
    stage: Stage,
    data: str,
    out: str | Path,
    *,
    init: Path,
    augmentations_per_clip: int = 1,
    take_over: bool = False,
    address: str | None = None,
    num_cpus: int | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> LatentCache:
    """Write a latent shard into `out` for each shard of `data`, with the frames that `stage.data` samples and the
    autoencoder and encoder that the stage trains with; `augmentations_per_clip` random draws per clip. Rerunning does
    only what is missing.

    `data` and `out` may be fsspec URLs. On a cluster, local ones, and `init`, must be on a file system that all nodes
    share. With `take_over`, a live run that owns `out` is stopped. Raises UserError, also if `out` was started with
    different settings; RunStopped.
    """
    out = str(out)
    folder = out if "://" in out else os.path.abspath(out)
    with Reporter("cache-latents", unit="samples", quiet=quiet) as report:
        report.waiting("reading the shards and the model")
        index, plan = _inputs(stage, data, init, augmentations_per_clip)
        _check_plan(out, plan)
        _check_shards(out, index, data)
        records = _records(index, out)
        missing = [shard for shard, record in zip(index.shards, records, strict=True) if record is None]
        content = _content(records, plan)
        complete = not missing and read_index(folder, LATENTS) == content
        if not complete and not take_over:
            refuse_if_running(folder)
        with ExitStack() as stack:
            if missing:
                report.connecting(address)
                stack.enter_context(connected(address, num_cpus=num_cpus))
                if device == "cuda" and usual_device() != "cuda":
                    raise UserError("--device cuda: the Ray cluster has no GPU; omit --device to run on CPUs")
            if not complete:
                fence = stack.enter_context(owned(folder, take_over=take_over))
                _start(folder, plan)
                _tell_shards(index, folder)
                if missing:
                    job = _Job(
                        stage=stage,
                        init=init.absolute(),
                        digests=plan["models"],
                        out=folder,
                        augmentations_per_clip=augmentations_per_clip,
                    )
                    latents = partial(latents_stage, job, fence, gpu=device != "cpu")
                    for _ in stream_shards(latents, missing, [len(shard) for shard in missing], report):
                        pass
                    content = _content(_records(index, out), plan)
                write_index(folder, content)
    return _result(content, out)


def _inputs(stage: Stage, data: str, init: Path, augmentations_per_clip: int) -> tuple[ShardIndex, dict[str, Any]]:
    """The shards to do, and the plan.json that describes their latents."""
    try:
        index = index_shards(data)
        check_names(index)
        for sentence in sentences(index, stage.data):
            note(sentence)
        models = weight_digests(_model(stage, init, "cpu"))
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    settings = deciding(
        stage.data.model_dump(mode="json") | {"augmentations_per_clip": augmentations_per_clip}, "data."
    )
    return index, LATENTS.describe({"data": settings}, models=models)


def _check_plan(out: str, plan: dict[str, Any]) -> None:
    """Raise UserError if `out` was started with different frame settings or weights. Read-only."""
    before = read_plan(out, LATENTS)
    if before is not None:
        if not isinstance(before.get("config"), dict) or not isinstance(before.get("models"), dict):
            raise UserError(f"{out}/{PLAN} is damaged: expected the keys 'config' and 'models'. Choose another folder")
        old, new = (content["config"] | {"models": content["models"]} for content in (before, plan))
        check_same(out, old, new, ignored=_OF_TRAINING, new_keys=True)


def _check_shards(out: str, index: ShardIndex, data: str) -> None:
    """Raise UserError if `out` contains latents of shards that are not in `data`: training would read them too."""
    known = {f"{shard.name}.tar" for shard in index.shards}
    there = [path.rpartition("/")[2] for path in storage.list_files(*storage.filesystem(out), ".tar")]
    others = [name for name in there if name not in known]
    if others:
        raise UserError(
            f"{out} contains latents of shards that are not in {without_credentials(data)} ({shortened(others)}): "
            "remove them or choose another folder"
        )


def _start(folder: str, plan: dict[str, Any]) -> None:
    """Prepare the folder for this run, which owns it."""
    _check_plan(folder, plan)
    write_plan(folder, plan)
    remove_index(folder)
    storage.remove_leftovers(*storage.filesystem(folder))


def _tell_shards(index: ShardIndex, folder: str) -> None:
    """Note the folder of latents beside the shards, for `clipmill remove`; shards may be read-only."""
    paths = (shard.path if "://" in shard.path else os.path.abspath(shard.path) for shard in index.shards)
    for shards in dict.fromkeys(path.rpartition("/")[0] for path in paths):
        with suppress(UserError):
            if read_plan(shards, SHARDS) is not None:
                add_latent_folder(shards, without_credentials(folder))


def latents_stage(job: _Job, fence: Fence, counter: Any = None, *, gpu: bool = True) -> pipeline.Stage:
    """The graph: (shard, number of its first sample) to latent shards; on GPUs if there are any."""
    return pipeline.Stage(
        name="latents",
        needs=("shard",),
        gives=("latents",),
        load=partial(_load_latents, job, fence, counter),
        resources=pipeline.Resources(num_gpus=int(gpu)),
    )


def _load_latents(
    job: _Job, fence: Fence, counter: Any, device: str
) -> Callable[[list[tuple[Shard, int]]], list[ShardRecord]]:
    return lambda shards: [cache_planned(shard, first, job, fence, counter, device=device) for shard, first in shards]


def cache_planned(
    shard: Shard, first: int, job: _Job, fence: Fence, counter: Any = None, *, device: str = "cpu"
) -> ShardRecord:
    """Write the latents of one shard."""
    import torch

    torch.set_num_threads(1)

    def done(sample: int) -> None:
        if counter is not None:
            counter.add.remote(first + sample)

    fence.check()
    try:
        return cache_shard(
            shard,
            job.out,
            _model(job.stage, job.init, device),
            job.stage.data,
            digests=job.digests,
            augmentations_per_clip=job.augmentations_per_clip,
            commit=fence.check,
            on_sample=done,
        )
    except UserError:
        raise
    except (ValueError, OSError) as error:
        fence.check()  # If another run owns the folder, it removed our files: report that instead.
        raise UserError(f"caching stopped: {error}") from error


def _records(index: ShardIndex, out: str) -> list[ShardRecord | None]:
    """The record of each shard's latents; None if they have to be written."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(partial(cached, out), index.shards))


def _content(records: list[ShardRecord | None], plan: dict[str, Any]) -> dict[str, Any]:
    """The content of index.json."""
    return index_of(plan, [record for record in records if record is not None])


def _result(content: dict[str, Any], out: str) -> LatentCache:
    totals = content["totals"]
    failed = {
        f"{clip['shard'].removesuffix('.tar')}/{clip['clip_id']}": f"{clip['error_kind']}: {clip['error']}"
        for clip in content["failed"]
    }
    if not totals["samples"]:
        reason = next((f"{key}: {reason}" for key, reason in failed.items()), "the shards contain no samples")
        raise EmptyResult(f"no sample could be cached: {reason}")
    return LatentCache(
        folder=out, shards=totals["shards"], samples=totals["samples"], bytes=totals["bytes"], failed=failed
    )


@lru_cache(maxsize=1)
def _model_of(settings: str, init: Path, device: str) -> Model:
    model = init_model(Stage.model_validate_json(settings), init)
    for name, network in model.networks().items():
        if name != "unet":
            network.to(device)
    return model


def _model(stage: Stage, init: Path, device: str) -> Model:
    """Loaded once per process."""
    return _model_of(stage.model_dump_json(), init, device)
