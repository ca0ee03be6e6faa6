"""`clipmill inspect`: run the pipeline on videos without a dataset."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from clipmill.addresses import redacted
from clipmill.errors import UserError
from clipmill.pipeline import loaded
from curation.dataset.schemas import SIGNAL_COLUMNS
from curation.inputs.sources import list_sources
from curation.scan.isolation import Isolated
from pipelines.clip_batch import GENERATED
from pipelines.config import CurateConfig
from pipelines.model_specs import asked_models, load_models
from pipelines.parts import scan_safely
from pipelines.progress import Reporter, note
from pipelines.scoring import clip_stages

FRAME_TIMES = "frame_times_s"
"""Beside the columns of `source`: the time of each frame; None for a rejected source."""
_STATS = ("uri", "frame", "time_s", "change", "change_ratio", "brightness", "transition", "refused")


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Output of `clipmill inspect --json` for one video; a hard cut has start_frame == end_frame."""

    uri: str
    source: dict[str, Any]
    transitions: list[dict[str, Any]] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)
    """Without embeddings, which are not useful to print."""
    refused_cuts: list[dict[str, Any]] = field(default_factory=list)
    """Proposed transitions that did not pass verification, with their `reason`."""
    error_kind: str | None = None
    error: str | None = None

    def signals(self) -> Iterator[dict[str, Any]]:
        """Per frame: its time, the signals that cuts are proposed from, in 8-bit levels, the transition it is in, and
        why a transition proposed there was refused.

        `change_ratio` compares a change with those of the two frames before and after, as the detector of hard cuts.
        """
        changes, brightness = (self.source.get(name) or [] for name in SIGNAL_COLUMNS)
        times_s = self.source.get(FRAME_TIMES)
        kinds = _by_frame(self.transitions, "kind")
        reasons = _by_frame(self.refused_cuts, "reason")
        for frame, (change, level) in enumerate(zip(changes, brightness, strict=True)):
            around = [*changes[max(0, frame - 2) : frame], *changes[frame + 1 : frame + 3]]
            mean = sum(around) / len(around) if around else 0.0
            yield {
                "uri": self.uri,
                "frame": frame,
                "time_s": round(times_s[frame], 6) if times_s else None,
                "change": change,
                "change_ratio": round(change / mean, 3) if mean else None,
                "brightness": level,
                "transition": kinds.get(frame, ""),
                "refused": reasons.get(frame, ""),
            }


def _by_frame(spans: Sequence[Mapping[str, Any]], name: str) -> dict[int, str]:
    """Frame -> a value of the span that it is in; a hard cut is at its first frame."""
    values: dict[int, str] = {}
    for span in spans:
        first, last = span["start_frame"], max(span["end_frame"], span["start_frame"] + 1)
        values |= dict.fromkeys(range(first, last), span[name])
    return values


def inspect(inputs: Sequence[str], config: CurateConfig | None = None, *, quiet: bool = False) -> Iterator[Inspection]:
    """Scan and score the inputs on this machine one after another, each in a child process with limits."""
    config = config or CurateConfig()
    with Reporter("inspect", unit="videos", quiet=quiet) as report:
        report.waiting("listing the inputs")  # first: models take longer than it does to find that a path is wrong
        listing = list_sources(inputs, config.inputs)
        sources = list(listing)
        if not sources:
            raise UserError(f"no usable input: no videos found in {', '.join(map(redacted, inputs))}")
        report.waiting("loading the models")
        notices, work = load_models(asked_models(config)).notices, loaded(clip_stages(config), "cpu")
    for notice in notices:
        note(notice)
    with Isolated(config.scan.limits) as child:
        for remark in () if quiet else listing.notes:
            note(remark)
        for source in sources:
            scan = scan_safely(child, source, config, frame_times=True)
            (scanned,) = work([scan])
            row = scanned.source | {FRAME_TIMES: scan.frame_times_s}
            transitions = row.pop("transitions", None) or []
            refused_cuts = row.pop("refused_cuts", None) or []
            yield Inspection(
                uri=source.uri,
                source=row,
                transitions=transitions,
                refused_cuts=refused_cuts,
                clips=[_clip(clip) for clip in scanned.clips],
                error_kind=row.pop("error_kind"),
                error=row.pop("error"),
            )


def _clip(row: Mapping[str, Any]) -> dict[str, Any]:
    """With all captions in one list."""
    captions = [*row["captions"], *row.get(GENERATED, ())]
    return {name: value for name, value in row.items() if name not in ("embedding", GENERATED)} | {"captions": captions}


@contextmanager
def signals_file(path: str) -> Iterator[Callable[[Inspection], None]]:
    """A new CSV file; the function that is yielded adds the signals of a video. Raises UserError if it cannot be
    written."""
    try:
        file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    with file:
        rows = csv.DictWriter(file, _STATS)
        rows.writeheader()
        yield lambda seen: rows.writerows(seen.signals())
