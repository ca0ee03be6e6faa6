"""Models on a cluster: checked on every node before any work starts, and placed where they run best."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import cv2
import numpy as np

from clipmill.errors import UserError
from curation.scan.one_pass import Scan
from curation.scores.base import Captioner
from pipelines.config import CaptionersConfig, CurateConfig
from pipelines.scoring import Models, caption_clips, load_captioners, load_models, score_clips

_SOURCES_PER_BATCH = 4
_SOURCES_PER_GPU_BATCH = 16
_LARGE_BYTES = 256 << 20
_THREADS = 4
_NEARLY_ONE = 0.9
"""Not the scans' number of CPUs: see `with_models`."""
_LEAST_CPUS_FOR_POOLS = 3
"""One for the actor that captions, one for the one that scores, one for the scans."""


@dataclass(frozen=True, kw_only=True)
class CheckedModels:
    """What the models of a run are, the same on every node."""

    clip: str | None
    clip_bytes: int
    digests: dict[str, str]
    """Model -> digest of its weights."""
    notices: tuple[str, ...]


def check_models(config: CurateConfig) -> CheckedModels:
    """Load every model once on every node that will run it, before any work starts.

    Raises UserError: weights that are missing (which, where they were looked for, how to place them) or unfit, or not
    the same on all nodes.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    check = ray.remote(num_cpus=0, max_retries=0)(_check)
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    try:
        answers = ray.get([check.options(scheduling_strategy=place).remote(config) for place in there])
    except ray.exceptions.RayError as error:
        raise UserError(f"the models could not be loaded on every node: {error}") from error
    found: dict[str, CheckedModels] = {}
    for node, answer in zip(nodes, answers, strict=True):
        name = node["NodeManagerAddress"]
        if isinstance(answer, str):
            raise UserError(f"on node {name}: {answer}" if len(nodes) > 1 else answer)
        found[name] = answer
    first = next(iter(found.values()))
    if any(models.digests != first.digests for models in found.values()):
        each = "; ".join(f"{name} {models.digests}" for name, models in found.items())
        raise UserError(f"the weights of the models are not the same on all nodes: {each}")
    return first


def _check(config: CurateConfig) -> CheckedModels | str:
    try:
        models, captioners = load_models(config), load_captioners(config)
    except UserError as error:
        return str(error)
    weights = models.clip.weights if models.clip else None
    digests = {scorer.name: scorer.weights_digest for scorer in models.scorers if scorer.weights_digest}
    digests |= {captioner.name: captioner.weights_digest for captioner in captioners if captioner.weights_digest}
    return CheckedModels(
        clip=weights.name if weights else None,
        clip_bytes=weights.path.stat().st_size if weights else 0,
        digests=digests | ({"clip": weights.digest()} if weights else {}),
        notices=tuple(models.notices),
    )


def with_models(scans: Any, config: CurateConfig, checked: CheckedModels) -> Any:
    """Ray Data: add the stages that caption and score, and leave small previews of the thumbnails.

    Small models live in the worker processes that also scan: tasks start in half the time of actor pools, and when a
    node dies another node simply runs them. Large ones would be loaded by every worker of a node, so they live in a
    pool of actors: one to a GPU, or else one to some CPUs. On a machine so small that an actor, which keeps its CPU,
    would leave none for the scans, all are tasks. How many caption at a time bounds the requests in flight.
    """
    import ray

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    roomy = cpus >= _LEAST_CPUS_FOR_POOLS
    captioners = [name for name, settings in config.captioners if settings is not None]
    share = 0.5 if "coca" in captioners and checked.clip else 1.0
    # Unequal num_cpus keep the stages apart: Ray Data would run equal ones as one, a whole batch in one task.
    if "coca" in captioners and roomy:
        size = max(1, gpus)
        placed = _pool(size, gpu=share if gpus else 0, cpus=1)
        scans = scans.map_batches(
            _Captioning, fn_constructor_args=(config.sharing(size),), **(placed | {"num_cpus": 0.8})
        )
    elif captioners:
        alone = {"batch_size": _SOURCES_PER_BATCH, "num_cpus": 0.8, "concurrency": 1}
        scans = scans.map_batches(partial(caption_sources, config=config), **alone)
    if gpus and checked.clip and roomy:
        placed = _pool(gpus, gpu=share, cpus=1)
    elif checked.clip_bytes > _LARGE_BYTES and roomy:
        placed = _cpu_pool([int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]])
    else:
        return scans.map_batches(partial(score_sources, config=config), batch_size=_SOURCES_PER_BATCH, num_cpus=0.9)
    return scans.map_batches(_Scoring, fn_constructor_args=(config,), **placed)


def _cpu_pool(node_cpus: list[int]) -> dict[str, Any]:
    """As many actors as fit on the nodes, each on one of them, and two CPUs left for scans and captions."""
    threads = max(1, min(_THREADS, max(node_cpus) if len(node_cpus) > 1 else node_cpus[0] - 2))
    fitting = sum(cpus // threads for cpus in node_cpus)
    while fitting > 1 and fitting * threads > sum(node_cpus) - 2:
        fitting -= 1
    return _pool(max(1, fitting), gpu=0, cpus=threads)


def _pool(size: int, *, gpu: float, cpus: int) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    return {
        "compute": ActorPoolStrategy(min_size=1, max_size=size),
        "batch_size": _SOURCES_PER_GPU_BATCH if gpu else _SOURCES_PER_BATCH,
        "num_gpus": gpu or None,
        "num_cpus": cpus if cpus > 1 else _NEARLY_ONE,
    }


def score_sources(batch: dict[str, Any], config: CurateConfig) -> dict[str, Any]:
    """Scores for the clips of several sources at once, by models that the worker process keeps."""
    return _scored(batch, _kept_models(config.model_copy(update={"captioners": CaptionersConfig()})))


class _Scoring:
    """The same as an actor."""

    def __init__(self, config: CurateConfig) -> None:
        self._models = load_models(config, _device())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _scored(batch, self._models)


def caption_sources(batch: dict[str, Any], config: CurateConfig) -> dict[str, Any]:
    """Captions for the clips of several sources at once, by captioners that the worker process keeps."""
    return _captioned(batch, _kept_captioners(config.captioners.model_dump_json()))


class _Captioning:
    """The same as an actor."""

    def __init__(self, config: CurateConfig) -> None:
        self._captioners = load_captioners(config, _device())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _captioned(batch, self._captioners)


@lru_cache(maxsize=1)
def _kept_captioners(settings: str) -> list[Captioner]:
    return load_captioners(CurateConfig(captioners=CaptionersConfig.model_validate_json(settings)))


def _captioned(batch: dict[str, Any], captioners: list[Captioner]) -> dict[str, Any]:
    def captioned(scans: list[Scan]) -> list[Scan]:
        caption_clips(captioners, scans)
        return scans

    return _on_scans(batch, captioned)


@lru_cache(maxsize=1)
def _kept_models(config: CurateConfig) -> Models:
    return load_models(config)


def _scored(batch: dict[str, Any], models: Models) -> dict[str, Any]:
    def scored(scans: list[Scan]) -> list[Scan]:
        score_clips(models, scans)
        return [replace(scan, thumbnails=_previews(scan)) for scan in scans]

    return _on_scans(batch, scored)


def _on_scans(batch: dict[str, Any], work: Callable[[list[Scan]], list[Scan]]) -> dict[str, Any]:
    """A stage between the scan and the tables. What stops the run travels on as a sentence in the column `error`.

    One error is that of the whole batch: the next stage cuts batches anew, and would commit the rest without scores.
    """
    if error := next(filter(None, batch["error"]), None):
        return {"scan": [b""] * len(batch["scan"]), "error": [error] * len(batch["scan"])}
    try:
        scans = work([pickle.loads(scan) for scan in batch["scan"]])
    except UserError as error:
        return {"scan": [b""] * len(batch["scan"]), "error": [str(error)] * len(batch["scan"])}
    return {"scan": [pickle.dumps(scan) for scan in scans], "error": [""] * len(scans)}


def _previews(scan: Scan) -> list[tuple[bytes, ...]]:
    return [tuple(_preview(jpeg) for jpeg in jpegs) for jpegs in scan.thumbnails]


def _preview(jpeg: bytes) -> bytes:
    """A JPEG at half the size of a scorer's thumbnail, for people to look at."""
    small = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
    assert small is not None, "a thumbnail that the scan itself compressed"
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


def _device() -> str:
    """The GPU that Ray gave this process, or the CPU."""
    import ray
    import torch

    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
