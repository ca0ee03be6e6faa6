"""`clipmill inspect`: run the pipeline on videos without a dataset."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from clipmill.errors import UserError
from clipmill.pipeline import loaded
from curation.dataset.schemas import SIGNAL_COLUMNS
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

    def signals(self) -> Iterator[dict[str, Any]]:
        """Per frame, the signals that cuts are proposed from, in 8-bit levels, and the transition it is in.

        `change_ratio` compares a change with those of the two frames before and after, as the detector of hard cuts.
        """
        changes, brightness = (self.source.get(name) or [] for name in SIGNAL_COLUMNS)
        kinds: dict[int, str] = {}
        for transition in self.transitions:
            first, last = transition["start_frame"], max(transition["end_frame"], transition["start_frame"] + 1)
            kinds |= dict.fromkeys(range(first, last), transition["kind"])
        for frame, (change, level) in enumerate(zip(changes, brightness, strict=True)):
            around = [*changes[max(0, frame - 2) : frame], *changes[frame + 1 : frame + 3]]
            mean = sum(around) / len(around) if around else 0.0
            yield {
                "uri": self.uri,
                "frame": frame,
                "change": change,
                "change_ratio": round(change / mean, 3) if mean else None,
                "brightness": level,
                "transition": kinds.get(frame, ""),
            }


def inspect(inputs: Sequence[str], config: CurateConfig | None = None, *, quiet: bool = False) -> Iterator[Inspection]:
    """Scan and score the inputs on this machine one after another, each in a child process with limits."""
    config = config or CurateConfig()
    with Reporter("inspect", unit="videos", quiet=quiet) as report:
        report.waiting("loading the models")
        notices, work = load_models(config).notices, loaded(clip_stages(config), "cpu")
    for notice in notices:
        note(notice)
    with Isolated(config.scan.limits) as child:
        listing = list_sources(inputs)
        for said in () if quiet else listing.notes:
            note(said)
        for source in listing:
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


@contextmanager
def signals_file(path: str) -> Iterator[Callable[[Inspection], None]]:
    """A new CSV file; the function that is yielded adds the signals of a video. Raises UserError if it cannot be
    written."""
    try:
        file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    with file:
        rows = csv.DictWriter(file, ["uri", "frame", "change", "change_ratio", "brightness", "transition"])
        rows.writeheader()
        yield lambda seen: rows.writerows(seen.signals())
