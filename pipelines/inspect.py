"""`clipmill inspect`: run the pipeline on videos without a dataset."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipmill.pipeline import loaded
from curation.inputs.sources import list_sources
from curation.scan.isolation import Isolated
from pipelines.config import CurateConfig
from pipelines.parts import scan_safely
from pipelines.progress import Reporter, note
from pipelines.scoring import clip_stages, load_models


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Output of `clipmill inspect --json` for one video; a hard cut has start_frame == end_frame."""

    uri: str
    source: dict[str, Any]
    transitions: list[dict[str, Any]] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)
    """Without embeddings, which are not useful to print."""
    error_kind: str | None = None
    error: str | None = None


def inspect(inputs: Sequence[str], config: CurateConfig | None = None, *, quiet: bool = False) -> Iterator[Inspection]:
    """Scan and score the inputs on this machine one after another, each in a child process with limits."""
    config = config or CurateConfig()
    with Reporter("inspect", unit="videos", quiet=quiet) as report:
        report.waiting("loading the models")
        notices, work = load_models(config).notices, loaded(clip_stages(config), "cpu")
    for notice in notices:
        note(notice)
    with Isolated(config.scan.limits) as child:
        for source in list_sources(inputs):
            (scanned,) = work([scan_safely(child, source, config)])
            row = dict(scanned.source)
            transitions = row.pop("transitions", None) or []
            yield Inspection(
                uri=source.uri,
                source=row,
                transitions=transitions,
                clips=[{name: value for name, value in clip.items() if name != "embedding"} for clip in scanned.clips],
                error_kind=row.pop("error_kind"),
                error=row.pop("error"),
            )
