"""Raw videos in, training datasets and a Stable Video Diffusion trainer out: the public API.

    import clipmill

    clipmill.curate(["videos"], "dataset")
    selection = clipmill.select("dataset")
    clipmill.shard("dataset", selection.name)

Every name is imported from its module on first use, so that `import clipmill` itself loads neither PyTorch nor Ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipmill.columns import column
    from clipmill.config import Config
    from clipmill.errors import RunStopped, SourceError, UserError
    from clipmill.pipeline import Frames, Resources
    from curation.captioners.base import Captioner, GeneratedCaption
    from curation.dataset.tables import Dataset
    from curation.dedup.clusters import ClusterConfig
    from curation.dedup.duplicates import DuplicatesConfig, DuplicatesResult, find_duplicates
    from curation.publish.plan import PublishConfig
    from curation.scores.base import ClipView, Scorer
    from curation.selection.rules import Rule, Rules
    from curation.selection.saved import Selection
    from curation.shards.write import ShardConfig
    from pipelines.cache_latents import LatentCache, cache_latents
    from pipelines.caption import CaptionResult, caption
    from pipelines.clustering import ClusterResult, cluster
    from pipelines.config import CurateConfig
    from pipelines.curate import CurateResult, curate
    from pipelines.embed import embed_images, embed_texts
    from pipelines.export import export
    from pipelines.fetch import FetchRun, fetch
    from pipelines.inspect import Inspection, inspect
    from pipelines.publish import PublishRun, publish
    from pipelines.remove import RemoveResult, remove
    from pipelines.report import WrittenReport, report
    from pipelines.sample import Sample, SampleRequest, sample
    from pipelines.score import ScoreResult, score
    from pipelines.search import SearchResult, search
    from pipelines.select import select
    from pipelines.shard import ShardRun, shard
    from pipelines.status import Status, status
    from pipelines.train import train
    from pipelines.train_on_ray import train_on_ray
    from training.stages import Stage

    __version__: str

_MODULES = {
    "CaptionResult": "pipelines.caption",
    "Captioner": "curation.captioners.base",
    "GeneratedCaption": "curation.captioners.base",
    "caption": "pipelines.caption",
    "embed_images": "pipelines.embed",
    "embed_texts": "pipelines.embed",
    "ClipView": "curation.scores.base",
    "ClusterConfig": "curation.dedup.clusters",
    "ClusterResult": "pipelines.clustering",
    "Config": "clipmill.config",
    "CurateConfig": "pipelines.config",
    "CurateResult": "pipelines.curate",
    "Dataset": "curation.dataset.tables",
    "DuplicatesConfig": "curation.dedup.duplicates",
    "DuplicatesResult": "curation.dedup.duplicates",
    "Frames": "clipmill.pipeline",
    "Inspection": "pipelines.inspect",
    "LatentCache": "pipelines.cache_latents",
    "PublishConfig": "curation.publish.plan",
    "PublishRun": "pipelines.publish",
    "Resources": "clipmill.pipeline",
    "Rule": "curation.selection.rules",
    "Rules": "curation.selection.rules",
    "RemoveResult": "pipelines.remove",
    "RunStopped": "clipmill.errors",
    "Sample": "pipelines.sample",
    "SampleRequest": "pipelines.sample",
    "ScoreResult": "pipelines.score",
    "Scorer": "curation.scores.base",
    "Selection": "curation.selection.saved",
    "ShardConfig": "curation.shards.write",
    "ShardRun": "pipelines.shard",
    "SourceError": "clipmill.errors",
    "Stage": "training.stages",
    "Status": "pipelines.status",
    "UserError": "clipmill.errors",
    "WrittenReport": "pipelines.report",
    "curate": "pipelines.curate",
    "cache_latents": "pipelines.cache_latents",
    "cluster": "pipelines.clustering",
    "column": "clipmill.columns",
    "export": "pipelines.export",
    "FetchRun": "pipelines.fetch",
    "fetch": "pipelines.fetch",
    "find_duplicates": "curation.dedup.duplicates",
    "inspect": "pipelines.inspect",
    "publish": "pipelines.publish",
    "remove": "pipelines.remove",
    "report": "pipelines.report",
    "sample": "pipelines.sample",
    "score": "pipelines.score",
    "search": "pipelines.search",
    "SearchResult": "pipelines.search",
    "select": "pipelines.select",
    "shard": "pipelines.shard",
    "status": "pipelines.status",
    "train": "pipelines.train",
    "train_on_ray": "pipelines.train_on_ray",
}
"""Public name -> the module that defines it."""

__all__ = [
    "CaptionResult",
    "Captioner",
    "ClipView",
    "ClusterConfig",
    "ClusterResult",
    "Config",
    "CurateConfig",
    "CurateResult",
    "Dataset",
    "DuplicatesConfig",
    "DuplicatesResult",
    "FetchRun",
    "Frames",
    "GeneratedCaption",
    "Inspection",
    "LatentCache",
    "PublishConfig",
    "PublishRun",
    "RemoveResult",
    "Resources",
    "Rule",
    "Rules",
    "RunStopped",
    "Sample",
    "SampleRequest",
    "ScoreResult",
    "Scorer",
    "SearchResult",
    "Selection",
    "ShardConfig",
    "ShardRun",
    "SourceError",
    "Stage",
    "Status",
    "UserError",
    "WrittenReport",
    "__version__",
    "cache_latents",
    "caption",
    "cluster",
    "column",
    "curate",
    "embed_images",
    "embed_texts",
    "export",
    "fetch",
    "find_duplicates",
    "inspect",
    "publish",
    "remove",
    "report",
    "sample",
    "score",
    "search",
    "select",
    "shard",
    "status",
    "train",
    "train_on_ray",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("clipmill")
    elif name in _MODULES:
        from importlib import import_module

        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'clipmill' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
