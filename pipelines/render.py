"""Terminal output: small tables; text that comes from files is escaped."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipmill.errors import ERROR_KINDS
from curation.dataset.caption_counts import CaptionCount
from curation.dedup.against import AgainstResult
from curation.dedup.duplicates import DuplicatesResult
from curation.scores.columns import SCORE_COLUMNS
from curation.selection.groups import is_group_rule
from curation.selection.saved import Selection, funnel_rows
from pipelines.curate import CurateResult
from pipelines.grid import duration, size, spent, table
from pipelines.inspect import Inspection
from pipelines.printable import printable
from pipelines.render_outdated import outdated_note, shard_rows
from pipelines.render_selection import condition
from pipelines.shard import ShardRun
from pipelines.status import Status, VersionCount

_SCORES = ("motion", *SCORE_COLUMNS)
_REASONS = 10
"""Reasons printed for clips that were not written, and for refused cuts."""
LOSSES = {
    "transition": "fades, dissolves and other transitions",
    "blank": "black or blank footage",
    "still": "stills",
    "short": "shots too short",
    "keyframe": "keyframe alignment",
    "damage": "unreadable parts",
}


def print_inspection(console: Console, seen: Inspection) -> None:
    """Print one video: its metadata, transitions, and clips with their scores."""
    console.print(Text(printable(seen.uri), style="bold"))
    if seen.error_kind:
        console.print(Text(f"  rejected, {seen.error_kind}: {printable(seen.error or '')}\n", style="red"))
        return
    console.print(Text(_probe_line(seen.source)))
    if seen.source.get("note"):
        console.print(Text(f"  note: {printable(seen.source['note'])}", style="yellow"))
    console.print(
        table(
            "transitions",
            ("kind", "from frame", "to frame", "from s", "to s"),
            ((t["kind"], t["start_frame"], t["end_frame"], t["start_s"], t["end_s"]) for t in seen.transitions),
        )
        if seen.transitions
        else Text("  no transitions")
    )
    if seen.refused_cuts:
        refused = seen.refused_cuts
        title = f"refused cuts ({len(refused):,}" + (f", the first {_REASONS})" if len(refused) > _REASONS else ")")
        rows = ((cut["kind"], cut["start_frame"], cut["start_s"], cut["reason"]) for cut in refused[:_REASONS])
        console.print(table(title, ("kind", "frame", "at s", "reason"), rows))
    console.print(
        table(
            "clips",
            (
                "start s",
                "end s",
                "length s",
                "frames",
                "extraction",
                "dropped s",
                *(name.replace("_", " ") for name in _SCORES),
            ),
            (_clip_cells(clip) for clip in seen.clips),
        )
        if seen.clips
        else Text("  no clips\n")
    )


def _probe_line(source: Mapping[str, Any]) -> str:
    fps = f"{source['fps']:.3f} fps" if source["fps"] else "single frame"
    rate = f"{fps}, variable" if source["variable_fps"] else fps
    turned = (", mirrored" if source["mirrored"] else "") + (
        f", rotated by {source['rotation']}°" if source["rotation"] else ""
    )
    return (
        f"  {source['codec']} {source['pixel_format']} in {source['container'].split(',')[0]}, "
        f"{source['width']}x{source['height']}{turned}, {rate}, {source['duration_s']:.2f} s, "
        f"{source['frames']} frames, {source['keyframes']} keyframes, scan {source['scan_cpu_s']:.2f} CPU-s"
    )


def _clip_cells(clip: Mapping[str, Any]) -> tuple[Any, ...]:
    lost_s = round((clip["cut_end_s"] - clip["cut_start_s"]) - clip["duration_s"], 3) + 0.0
    return (
        clip["start_s"],
        clip["end_s"],
        clip["duration_s"],
        clip["frames"],
        clip["extraction"],
        lost_s,
        *(f"{clip[name]:.3g}" if clip.get(name) is not None else None for name in _SCORES),
    )


def print_curation(console: Console, result: CurateResult) -> None:
    """Print a curation run: inputs, rejected sources by reason, clips, and speed."""
    status = result.status
    rows: list[tuple[str, Any, str]] = [
        (
            "sources",
            status.sources,
            f"{result.sources_done_now} scanned in this run, {result.sources_done_before} earlier",
        ),
        ("  ok", status.sources_ok, f"{duration(status.video_s)} of video"),
        *((f"  {kind}", count, f"rejected: {_kind(kind)}") for kind, count in status.rejected.items()),
        (
            "clips",
            status.clips,
            ", ".join(f"{count} to {extraction}" for extraction, count in status.extractions.items()),
        ),
        ("  footage", None, f"{duration(status.clip_s)}, {share(status.clip_s, status.video_s)} of all"),
        *(
            (f"  dropped: {LOSSES.get(why, why)}", None, duration(lost))
            for why, lost in status.lost_s.items()
            if lost > 0.05
        ),
        *_unscored_rows(status),
        *(("  note", None, notice) for notice in status.notices),
        *_caption_rows(status),
        *_duplicate_rows(result.duplicates),
        *((f"  without {name}", None, "excluded by the configuration") for name in status.left_out),
        ("seconds", None, f"{result.wall_s:.1f} s wall time"),
        ("speed", None, _speed(status)),
    ]
    console.print(table(f"curated into {printable(result.dataset)}", ("", "count", ""), rows))
    if status.rejected_sources:
        console.print("rejected sources:")
        print_rejected(console, status)


def print_duplicates(console: Console, dataset: str, result: DuplicatesResult) -> None:
    """Print the result of a near-duplicate search."""
    console.print(
        table(
            f"duplicates in {printable(dataset)}" + (" (unchanged since the last search)" if result.reused else ""),
            ("", "count", ""),
            [
                ("clips", result.clips, f"{'approximate' if result.approximate else 'exact'} search by {result.by}"),
                ("  compared with all", result.compared, "results of the others are reused from the last search"),
                (
                    "kept",
                    result.kept,
                    f"{result.groups:,} have duplicates, at most {max(0, result.largest_group - 1):,} each",
                ),
                ("duplicates", result.duplicates, "duplicate_rank 1 or higher"),
                ("  without embedding", result.without_embedding, "not compared"),
            ],
        )
    )


def print_against(console: Console, other: str, result: AgainstResult) -> None:
    """Print the result of a search in another dataset."""
    note = f"{result.score} of at least {result.threshold:g}"
    console.print(
        table(
            f"clips that are in {printable(other)} too"
            + (" (unchanged since the last search)" if result.reused else ""),
            ("", "count", ""),
            [
                ("clips", result.clips, f"exact search by {result.by} among {result.other_clips:,} clips"),
                ("duplicates", result.duplicates, f"{note}; drop them with the rule {result.score}: {{max: ...}}"),
                ("  without embedding", result.without_embedding, "not compared"),
            ],
        )
    )


def print_summary(
    console: Console, curated: CurateResult, selection: Selection, shards: Sequence[ShardRun], wall_s: float
) -> None:
    """Print a whole run in one table: inputs, clips kept by each rule, the result, and speed."""
    status = curated.status
    rows: list[tuple[str, Any, str]] = [
        ("sources", status.sources, f"{duration(status.video_s)} of video"),
        *((f"  {kind}", count, f"rejected: {_kind(kind)}") for kind, count in status.rejected.items()),
        ("clips", status.clips, f"{duration(status.clip_s)}, {share(status.clip_s, status.video_s)} of all footage"),
        *((f"  kept by {step['rule']}", step["clips_left"], condition(step)) for step in funnel_rows(selection)[1:]),
        ("selected", selection.clips, duration(selection.seconds)),
        *(
            (f"{run.index['kind'].removesuffix('s')} shards", run.index["totals"]["shards"], _shard_line(run))
            for run in shards
        ),
        ("seconds", round(wall_s, 1), "wall time"),
        ("speed", None, _speed(status)),
    ]
    console.print(table("summary", ("", "count", ""), rows))


def _shard_line(run: ShardRun) -> str:
    totals = run.index["totals"]
    failed = f", {totals['failed']} clips failed" if totals["failed"] else ""
    return f"{totals['samples']:,} samples, {size(totals['bytes'])}{failed}"


def _duplicate_rows(result: DuplicatesResult | None) -> list[tuple[str, Any, str]]:
    if not result:
        return []
    return [
        (
            "  duplicates",
            result.duplicates,
            f"copies of {result.groups:,} clips; drop them with the rule `duplicate_rank: {{max: 0}}`",
        )
    ]


def _kind(kind: str) -> str:
    return ERROR_KINDS.get(kind, "unknown error kind")


def _unscored_rows(status: Status) -> list[tuple[str, Any, str]]:
    rows: list[tuple[str, Any, str]] = []
    for name, count in status.unscored.items():
        if count:
            reason = status.unscored_reasons.get(name)
            others = f" ({reason.clips:,} of them)" if reason and reason.clips < count else ""
            rows.append((f"  without {name}", count, f"{reason.text}{others}" if reason else "see its error column"))
    return rows


def print_rejected(console: Console, status: Status) -> None:
    """Print the rejected sources in the status, one per line, with their reasons."""
    shown, count = status.rejected_sources, status.sources - status.sources_ok
    for source in shown:
        console.print(Text(printable(f"{source.uri}: {source.error_kind}: {source.error}")), soft_wrap=True)
    if len(shown) < count:
        console.print(
            f"and {count - len(shown):,} more: clipmill status {printable(status.dataset)} --rejected", markup=False
        )


def _caption_rows(status: Status) -> list[tuple[str, Any, str]]:
    captioners = {each.captioner for each in status.captions}
    rows: list[tuple[str, Any, str]] = [
        (f"captions {each.captioner}@{each.version}", each.clips, _captions(each, status.clips))
        for each in status.captions
    ]
    failed = {name: count for name, count in status.captions_failed.items() if name not in captioners}
    return [*rows, *((f"  {name} captions", count, "failed; see their error") for name, count in failed.items())]


def _captions(count: CaptionCount, clips: int) -> str:
    said = [] if count.counted else ["an older version"]
    said += [f"{count.failed:,} failed; see {count.captioner}_error"] if count.failed else []
    said += [f"{clips - count.clips:,} clips not captioned"] if count.clips < clips else []
    said += [spent(count.tokens, count.price)] if count.tokens else []
    return "; ".join(said)


def _speed(status: Status) -> str:
    cpu_s = status.scan_cpu_s + status.score_cpu_s
    if not cpu_s:
        return "no sources scanned"
    scan = f"scan only {status.video_s / status.scan_cpu_s:.1f}" if status.scan_cpu_s else "no scan"
    return f"{status.video_s / cpu_s:.1f} s of video per CPU-second ({scan})"


def print_shards(console: Console, run: ShardRun) -> None:
    """Print the totals of the shards and why clips could not be extracted."""
    totals = run.index["totals"]
    rows: list[tuple[str, Any, str]] = [
        ("shards", totals["shards"], f"{run.written} written in this run, {run.kept} already complete"),
        ("selected", totals["selected"], "clips"),
        ("samples", totals["samples"], duration(totals["duration_s"])),
        ("bytes", None, size(totals["bytes"])),
        ("seconds", None, f"{run.wall_s:.1f} s"),
    ]
    if totals["uncaptioned"]:
        rows.append(
            ("  no caption", totals["uncaptioned"], "samples have an empty .txt; add captions with `clipmill caption`")
        )
    rows += [
        (f"  {kind}", count, f"not written: {error}") for (kind, error), count in _lost(run.index).most_common(_REASONS)
    ]
    console.print(table(f"shards in {printable(run.folder)}", ("", "count", ""), rows))


def _lost(index: dict[str, Any]) -> Counter[tuple[str, str]]:
    """(kind, reason) -> number of selected clips missing from the shards for that reason."""
    return Counter((clip["error_kind"], clip["error"]) for clip in (*index["failed"], *index["gone"]))


def print_status(console: Console, status: Status) -> None:
    """Print the contents of a dataset."""
    rows: list[tuple[str, Any, str]] = [
        (
            "version",
            status.version,
            "changed by a run in progress, or by one that was killed" if status.changing else "",
        ),
        ("sources", status.sources, f"{status.sources_ok} ok, {duration(status.video_s)}"),
        *((f"  {kind}", count, _kind(kind)) for kind, count in status.rejected.items()),
        ("clips", status.clips, duration(status.clip_s)),
        *_unscored_rows(status),
        *((f"  without {name}", None, "excluded by the configuration") for name in status.left_out),
        *((f"{v.scorer} version {v.version}", v.clips, _version(v, status.clips)) for v in status.versions),
        *_caption_rows(status),
        *(("note", None, notice) for notice in status.notices),
        *((f"marked {verdict}", clips, "") for verdict, clips in status.marks.items()),
        *(
            (
                f"selection {s.name}",
                s.clips,
                "; ".join((duration(s.seconds), *_limits(s))) + outdated_note(status.outdated_selections.get(s.name)),
            )
            for s in status.selections
        ),
        *(row for name in status.shards for row in shard_rows(status, name, missing_clips(status.shards[name]))),
    ]
    console.print(table(printable(status.dataset), ("", "count", ""), rows))


def _limits(selection: Selection) -> list[str]:
    """The rules on groups of clips that a selection ran last."""
    return [step.asked for step in selection.funnel if is_group_rule(step.rule) and step.skipped is None]


def _version(count: VersionCount, clips: int) -> str:
    said = [f"{count.failed:,} failed"] if count.failed else []
    said += [f"{clips - count.clips:,} clips not scored"] if count.clips < clips else []
    return "; ".join([f"used for {count.scorer}" if count.counted else "", *said]).removeprefix("; ")


def missing_clips(index: Mapping[str, Any]) -> str:
    """How many of the selected clips are missing from the shards."""
    totals = index["totals"]
    selected = totals.get("selected", totals["samples"] + totals["failed"])  # earlier releases counted only these
    missing = selected - totals.get("clips", totals["samples"])
    if missing <= 0:
        return ""
    counts = ", ".join(f"{totals[key]:,} {key}" for key in ("failed", "gone") if totals.get(key))
    return f"; partial: {missing:,} of {selected:,} selected clips missing ({counts})"


def share(part: float, whole: float) -> str:
    """`part` as a percentage of `whole`."""
    return f"{100 * part / whole:.0f} %" if whole else "nothing"


def estimate_table(costs: Iterable[tuple[str, str]]) -> Table:
    """The cost estimate of a stage."""
    return table("estimate", ("", ""), costs)
