"""Models on a cluster: checked on every node before any work starts, and placed where they run best."""

import pickle
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import cv2
import numpy as np

from curation.errors import UserError
from curation.scan import Scan
from pipelines.config import CaptionersConfig, CurateConfig
from pipelines.scoring import Models, caption_clips, load_captioners, load_models, score_clips

_SOURCES_PER_BATCH = 4
_SOURCES_PER_GPU_BATCH = 16
_LARGE_BYTES = 256 << 20
_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class CheckedModels:
    """What the models of a run are, the same on every node."""

    clip: str | None
    clip_digest: str | None
    clip_bytes: int
    notices: tuple[str, ...]

    def described(self) -> dict[str, Any]:
        """For models.json in the dataset."""
        return {"clip": self.clip, "clip_digest": self.clip_digest, "notices": list(self.notices)}


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
    answers = ray.get([check.options(scheduling_strategy=place).remote(config) for place in there])
    found: dict[str, CheckedModels] = {}
    for node, answer in zip(nodes, answers, strict=True):
        name = node["NodeManagerAddress"]
        if isinstance(answer, str):
            raise UserError(f"on node {name}: {answer}" if len(nodes) > 1 else answer)
        found[name] = answer
    first = next(iter(found.values()))
    if any(models.clip_digest != first.clip_digest for models in found.values()):
        each = "; ".join(f"{name} {models.clip_digest}" for name, models in found.items())
        raise UserError(f"the weights of CLIP model {first.clip} are not the same on all nodes: {each}")
    return first


def _check(config: CurateConfig) -> CheckedModels | str:
    try:
        models = load_models(config)
        load_captioners(config)
    except UserError as error:
        return str(error)
    if models.clip is None:
        return CheckedModels(clip=None, clip_digest=None, clip_bytes=0, notices=())
    weights = models.clip.weights
    return CheckedModels(
        clip=weights.name,
        clip_digest=weights.digest(),
        clip_bytes=weights.path.stat().st_size,
        notices=tuple(models.notices),
    )


def with_models(scans: Any, config: CurateConfig, checked: CheckedModels) -> Any:
    """Ray Data: add the stages that caption and score, and leave small previews of the pictures.

    Small models live in the worker processes that also scan: tasks start in half the time of actor pools, and when a
    node dies another node simply runs them. Large ones would be loaded by every worker of a node, so they live in a
    pool of actors: one to a GPU, or else one to some CPUs. Captioners have a pool of their own, whose size bounds the
    requests in flight.
    """
    import ray

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    captioners = [name for name, settings in config.captioners if settings is not None]
    if captioners:
        on_gpu = bool(gpus) and "coca" in captioners
        size = gpus if on_gpu else 1
        placed = _pool(size, gpu=0.5 if on_gpu else 0, cpus=1)
        scans = scans.map_batches(_Captioning, fn_constructor_args=(config.sharing(size),), **placed)
    if gpus and checked.clip:
        placed = _pool(gpus, gpu=0.5 if "coca" in captioners else 1, cpus=1)
    elif checked.clip_bytes > _LARGE_BYTES:
        threads = min(_THREADS, max(1, cpus - 1))
        placed = _pool(max(1, (cpus - 1) // threads), gpu=0, cpus=threads)
    else:
        # Unequal num_cpus keep the stages apart: Ray Data would run equal ones as one, a whole batch in one task.
        return scans.map_batches(partial(score_sources, config=config), batch_size=_SOURCES_PER_BATCH, num_cpus=0.9)
    return scans.map_batches(_Scoring, fn_constructor_args=(config,), **placed)


def _pool(size: int, *, gpu: float, cpus: int) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    return {
        "compute": ActorPoolStrategy(min_size=1, max_size=size),
        "batch_size": _SOURCES_PER_GPU_BATCH if gpu else _SOURCES_PER_BATCH,
        "num_gpus": gpu or None,
        "num_cpus": cpus,
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


class _Captioning:
    """Captions for the clips of several sources at once."""

    def __init__(self, config: CurateConfig) -> None:
        self._captioners = load_captioners(config, _device())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        scans: list[Scan] = [pickle.loads(scan) for scan in batch["scan"]]
        caption_clips(self._captioners, scans)
        return {"scan": [pickle.dumps(scan) for scan in scans]}


@lru_cache(maxsize=1)
def _kept_models(config: CurateConfig) -> Models:
    return load_models(config)


def _scored(batch: dict[str, Any], models: Models) -> dict[str, Any]:
    scans: list[Scan] = [pickle.loads(scan) for scan in batch["scan"]]
    score_clips(models, scans)
    return {"scan": [pickle.dumps(replace(scan, pictures=_previews(scan))) for scan in scans]}


def _previews(scan: Scan) -> list[tuple[bytes, ...]]:
    return [tuple(_preview(jpeg) for jpeg in jpegs) for jpegs in scan.pictures]


def _preview(jpeg: bytes) -> bytes:
    """A JPEG at half the size of a scorer's picture, for people to look at."""
    small = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
    assert small is not None, "a picture that the scan itself compressed"
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


def _device() -> str:
    """The GPU that Ray gave this process, or the CPU."""
    import ray
    import torch

    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
