"""The models of a run, loaded once on every node before any work starts."""

from dataclasses import dataclass
from typing import Any

from clipmill.errors import UserError
from clipmill.pipeline import Resources
from curation.scores.base import Scorer
from pipelines.model_specs import AskedModels, forget_models, load_models


@dataclass(frozen=True, kw_only=True)
class CheckedModels:
    """The models of a run, equal on every node."""

    clip: str | None
    clip_bytes: int
    digests: dict[str, str]
    """Model -> digest of its weights."""
    notices: tuple[str, ...]
    scorers: dict[str, int]
    """Scorer -> version that its class declares."""
    resources: dict[str, Resources]
    """Model -> resources of a worker."""

    def recorded(self) -> dict[str, Any]:
        """The record in the dataset."""
        return {name: value for name, value in vars(self).items() if name != "resources"}


def check_models(asked: AskedModels) -> CheckedModels:
    """Load every model once on every node that will run it, before any work starts.

    Raises UserError for weights that are missing (with the searched locations and installation steps), do not match, or
    differ between nodes.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    check = ray.remote(num_cpus=0, max_retries=0)(_check)
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    try:
        answers = ray.get([check.options(scheduling_strategy=place).remote(asked) for place in there])
    except ray.exceptions.RayError as error:
        raise UserError(f"the models could not be loaded on every node: {error}") from error
    by_node: dict[str, CheckedModels] = {}
    for node, answer in zip(nodes, answers, strict=True):
        name = node["NodeManagerAddress"]
        if isinstance(answer, str):
            raise UserError(f"on node {name}: {answer}" if len(nodes) > 1 else answer)
        by_node[name] = answer
    first = next(iter(by_node.values()))
    if any(models.digests != first.digests for models in by_node.values()):
        each = "; ".join(f"{name} {models.digests}" for name, models in by_node.items())
        raise UserError(f"the weights of the models differ between nodes: {each}")
    return first


def _check(asked: AskedModels) -> CheckedModels | str:
    try:
        models = load_models(asked)
    except UserError as error:
        return str(error)
    finally:
        forget_models()  # this worker may never run a stage of them
    weights = models.clip.weights if models.clip else None
    with_weights: list[Scorer] = [*models.captioners, *models.scorers]
    return CheckedModels(
        clip=weights.name if weights else None,
        clip_bytes=weights.size_bytes if weights else 0,
        digests={model.name: model.weights_digest for model in with_weights if model.weights_digest}
        | ({"clip": weights.digest()} if weights else {}),
        notices=tuple(models.notices),
        scorers={scorer.name: scorer.version for scorer in models.scorers},
        resources=models.resources,
    )
