"""The models that a configuration asks for: found in the driver, sent to every node, loaded once per process."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, cast

from clipmill.config import Config
from clipmill.errors import UserError
from clipmill.pipeline import Resources
from curation.captioners import Captioner, captioner_spec
from curation.captioners.endpoint import EndpointCaptioner
from curation.dedup.hashes import HASH
from curation.scores.base import Scorer, needs_clip
from curation.scores.clip_embedder import ClipEmbedder, ClipEmbedderConfig
from curation.scores.registry import SCORERS, ScorerSpec, scorer_spec
from pipelines.config import CurateConfig

Spec = tuple[Callable[..., Any], Config | None]
"""What makes a model, and its settings."""


@dataclass(frozen=True, kw_only=True)
class AskedModels:
    """The models of a run, not loaded. Can be sent to any node."""

    captioners: tuple[ScorerSpec, ...] = ()
    clip: ClipEmbedderConfig | None = None
    """None if no score needs it."""
    scorers: tuple[ScorerSpec, ...] = ()

    def specs(self) -> list[Spec]:
        """Of all of them."""
        clip: list[Spec] = [(ClipEmbedder, self.clip)] if self.clip else []
        plugins: list[Spec] = [(spec, None) for spec in (*self.captioners, *self.scorers)]
        return [*plugins, *clip]


@dataclass(frozen=True, kw_only=True)
class Models:
    """The loaded models of all clip stages."""

    captioners: tuple[Captioner, ...]
    clip: ClipEmbedder | None
    scorers: tuple[Scorer, ...]

    @property
    def resources(self) -> dict[str, Resources]:
        """Name -> resources of a worker, now that the weights are known."""
        models: list[ClipEmbedder | Scorer] = [*self.captioners, *self.scorers]
        if self.clip:
            models.append(self.clip)
        return {model.name: model.resources for model in models}

    @property
    def notices(self) -> list[str]:
        """Notices to users of these models."""
        return [self.clip.weights.notice] if self.clip and self.clip.weights.notice else []


def asked_models(config: CurateConfig) -> AskedModels:
    """The models of a curation run. Raises UserError for a missing plug-in or invalid settings."""
    asked = AskedModels(
        captioners=tuple(asked_captioner(name, config) for name in config.captioners.asked()),
        scorers=(
            *(asked_scorer(name, config) for name in SCORERS if name not in config.without),
            *(asked_scorer(name, config) for name in config.scorers),
        ),
    )
    return _with_hashes(_with_clip(asked, config), config)


def models_of_scorer(scorer: str, config: CurateConfig) -> AskedModels:
    """A scorer by name or address, and CLIP if it needs that. Raises UserError."""
    return _with_clip(AskedModels(scorers=(asked_scorer(scorer, config),)), config)


def asked_scorer(scorer: str, config: CurateConfig) -> ScorerSpec:
    """A scorer with the settings that a configuration has for it. Raises UserError."""
    if scorer in SCORERS:
        return scorer_spec(scorer, getattr(config, scorer, None))
    return scorer_spec(scorer, config.scorers.get(scorer))


def model_of_captioner(captioner: str, config: CurateConfig) -> AskedModels:
    """A captioner by name or address. It runs like a scorer. Raises UserError."""
    return _with_clip(AskedModels(scorers=(asked_captioner(captioner, config),)), config)


def asked_captioner(captioner: str, config: CurateConfig) -> ScorerSpec:
    """A captioner with the settings that a configuration has for it. Raises UserError."""
    return captioner_spec(captioner, config.captioners.asked().get(captioner))


def load_models(asked: AskedModels, device: str = "cpu") -> Models:
    """Load them all.

    The process caches them for its stages; `forget_models` drops them. Raises UserError if weights are missing or do
    not match.
    """
    models = Models(
        captioners=tuple(load_model(spec, None, device) for spec in asked.captioners),
        clip=load_model(ClipEmbedder, asked.clip, device) if asked.clip else None,
        scorers=tuple(load_model(spec, None, device) for spec in asked.scorers),
    )
    for scorer in models.scorers:
        if models.clip and scorer.embedding_width not in (None, models.clip.width):
            raise UserError(
                f"the {scorer!r} expects embeddings of width {scorer.embedding_width}, but CLIP model "
                f"{models.clip.weights.name} gives {models.clip.width}: choose a matching head and model"
            )
    return models


def model_loaders(config: CurateConfig) -> dict[str, Callable[[], str]]:
    """Name -> a function that loads a model with weights, cached as by `load_models`, and returns the weights' digest.

    It raises UserError if they are missing or do not match. Without captioners behind an endpoint.
    """
    models = [(make_model(*spec), spec) for spec in asked_models(config).specs()]
    with_weights = [(model.name, spec) for model, spec in models if not isinstance(model, EndpointCaptioner)]
    return {name: partial(_load_and_digest, *spec) for name, spec in with_weights}


def forget_models() -> None:
    """Drop the models cached by this process."""
    _loaded.cache_clear()


def make_model(kind: Callable[..., Any], settings: Config | None) -> Any:
    """A model, not loaded."""
    return kind(settings) if settings is not None else kind()


def load_model(kind: Callable[..., Any], settings: Config | None, device: str) -> Any:
    """A cached model: loaded once per process for equal settings."""
    values = settings.model_dump_json() if settings is not None else None
    return _loaded(kind, cast("Hashable", type(settings)), values, device)


@lru_cache(maxsize=16)
def _loaded(kind: Callable[..., Any], settings: Any, values: str | None, device: str) -> Any:
    model = make_model(kind, None if values is None else settings.model_validate_json(values))
    model.load(device)
    return model


def _load_and_digest(kind: Callable[..., Any], settings: Config | None) -> str:
    model = load_model(kind, settings, "cpu")
    return model.weights.digest() if isinstance(model, ClipEmbedder) else model.weights_digest or ""


def _with_hashes(asked: AskedModels, config: CurateConfig) -> AskedModels:
    """With picture hashes, if near-duplicates are found by them: if asked for, or if there are no embeddings."""
    compared = config.duplicates.by or ("embedding" if asked.clip else HASH) if config.duplicates else None
    if compared != HASH or any(spec().name == HASH for spec in asked.scorers):
        return asked
    return replace(asked, scorers=(*asked.scorers, asked_scorer(HASH, config)))


def _with_clip(asked: AskedModels, config: CurateConfig) -> AskedModels:
    needed = any(needs_clip(spec().needs) for spec in asked.scorers)
    return replace(asked, clip=config.clip_embedder) if needed else asked
