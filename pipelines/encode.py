"""`clipmill encode`: clip shards into latent shards, a Ray task per shard."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import ray
import torch

from curation.errors import RunStopped, UserError
from pipelines.cluster import connected, usual_device
from pipelines.progress import Reporter
from svd.model import Model
from training.encode import Encoded, check_names, digests, encode_shard, read_record
from training.initial import initial_model
from training.shard_index import Shard, index_shards
from training.stages import Stage

PLAN, INDEX = "plan.json", "index.json"


@dataclass(frozen=True, kw_only=True)
class EncodeRun:
    """What is in the folder of latent shards."""

    folder: Path
    shards: int
    samples: int
    bytes: int
    failed: dict[str, str]
    """SHARD/KEY -> reason."""


def encode(
    stage: Stage,
    data: str,
    out: Path,
    *,
    init: Path,
    choices: int = 1,
    address: str | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> EncodeRun:
    """Write into `out` a latent shard for each shard of `data`, with the frames that `stage.data` chooses and the
    autoencoder and encoder that the stage would train with, `choices` draws of each. Run again, only what is missing is
    done.

    On a cluster `data`, `init` and `out` have to be on a file system that all nodes see. Raises UserError, also for
    an `out` that was begun with other settings.
    """
    try:
        index = index_shards(data)
        check_names(index)
        out.mkdir(parents=True, exist_ok=True)
        _plan(stage, out, _model(stage, init, "cpu"), choices)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    missing = [shard for shard in index.shards if read_record(out, shard) is None]
    if missing:
        with connected(address), Reporter("encode", len(missing), unit="shards", quiet=quiet) as reporter:
            device = device or usual_device()
            options = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
            remote = ray.remote(_encode).options(max_retries=3, **options)
            waiting = [
                remote.remote(shard, out.absolute(), stage, init.absolute(), choices, device) for shard in missing
            ]
            while waiting:
                finished, waiting = ray.wait(waiting)
                encoded = _record(finished[0])
                reporter.advance(detail=f"{encoded.name}: {encoded.samples} samples")
    records = [record for shard in index.shards if (record := read_record(out, shard)) is not None]
    failed = {f"{record.name}/{key}": reason for record in records for key, reason in record.failed.items()}
    run = EncodeRun(
        folder=out,
        shards=len(records),
        samples=sum(record.samples for record in records),
        bytes=sum(record.bytes for record in records),
        failed=failed,
    )
    shards = [{"name": f"{r.name}.tar", "samples": r.samples, "bytes": r.bytes, "sha256": r.sha256} for r in records]
    content = {"shards": shards, "samples": run.samples, "bytes": run.bytes, "failed": failed}
    (out / INDEX).write_text(json.dumps(content, indent=2) + "\n")
    if not run.samples:
        raise UserError(f"no sample could be encoded: {next(iter(failed.items()), 'the shards are empty')}")
    return run


def _record(task: Any) -> Encoded:
    """Of a task that has ended. Raises RunStopped with what stopped it."""
    try:
        return cast("Encoded", ray.get(task))
    except ray.exceptions.RayError as error:
        raise RunStopped(f"encoding stopped: {str(error).strip().splitlines()[-1]}") from error


def _plan(stage: Stage, out: Path, model: Model, choices: int) -> None:
    """Raise ValueError where `out` was begun with other frames or other weights."""
    free = ("batch_size", "workers", "prefetch", "max_broken_share")
    data = {name: value for name, value in stage.data.to_dict().items() if name not in free}
    plan = json.loads(json.dumps({"data": data | {"choices": choices}, "models": digests(model)}))
    path = out / PLAN
    if not path.is_file():
        path.write_text(json.dumps(plan, indent=2) + "\n")
        return
    before = json.loads(path.read_text())
    differs = [
        f"{group}.{name}"
        for group, values in plan.items()
        for name in values
        if before.get(group, {}).get(name) != values[name]
    ]
    if differs:
        raise ValueError(f"{out} holds latents made otherwise ({', '.join(differs)}): use another folder")


def _encode(shard: Shard, out: Path, stage: Stage, init: Path, choices: int, device: str) -> Encoded:
    torch.set_num_threads(1)
    return encode_shard(shard, out, _model(stage, init, device), stage.data, choices=choices)


@lru_cache(maxsize=1)
def _model_of(settings: str, init: Path, device: str) -> Model:
    from training.stages import overlay

    values = json.loads(settings)
    model = initial_model(overlay(Stage.preset(values["name"]), values), init)
    for name, network in model.networks().items():
        if name != "unet":
            network.to(device)
    return model


def _model(stage: Stage, init: Path, device: str) -> Model:
    """Loaded once per process."""
    return _model_of(json.dumps(stage.to_dict()), init, device)
