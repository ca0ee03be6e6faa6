"""What the pipeline sees in a video, without any dataset: probe, transitions, clips, scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from curation.inputs.sources import list_sources
from curation.scan.isolation import Isolated
from pipelines.config import CurateConfig
from pipelines.progress import Reporter, note
from pipelines.scoring import caption_clips, load_captioners, load_models, scan_safely, score_clips


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """One video as `clipmill inspect --json` prints it; a hard cut has start_frame == end_frame."""

    uri: str
    source: dict[str, Any]
    transitions: list[dict[str, Any]] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)
    """Without their embeddings, which say nothing to a reader."""
    error_kind: str | None = None
    error: str | None = None


def inspect(inputs: Sequence[str], config: CurateConfig | None = None, *, quiet: bool = False) -> Iterator[Inspection]:
    """Scan and score every input on this machine, one after another, each in a child process with limits."""
    config = config or CurateConfig()
    with Reporter("inspect", unit="videos", quiet=quiet) as report:
        report.waiting("loading the models")
        models, captioners = load_models(config), load_captioners(config)
    for notice in models.notices:
        note(notice)
    with Isolated(config.limits) as child:
        for source in list_sources(inputs):
            scanned = scan_safely(child, source, config)
            caption_clips(captioners, [scanned])
            score_clips(models, [scanned])
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
