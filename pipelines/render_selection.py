"""Terminal output of `clipmill select`: the funnel of a selection, and how it differs from another one."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from curation.dataset.caption_counts import CaptionSavings
from curation.selection.difference import Difference
from curation.selection.saved import Selection, funnel_rows
from pipelines.grid import duration, spent, table


def print_selection(console: Console, selection: Selection, *, dry_run: bool = False) -> None:
    """Print the funnel: each rule, its resolved thresholds, and the clips it removed."""
    rows = [
        (
            step["rule"],
            condition(step),
            step["removed_alone"],
            step["removed"],
            step["unscored_dropped"],
            step["clips_left"],
            duration(step["seconds_left"]),
        )
        for step in funnel_rows(selection)
    ]
    title = f"selection {selection.name}: {selection.clips:,} of {selection.total_clips:,} clips"
    title += " (dry run, not written)" if dry_run else ""
    console.print(table(title, ("rule", "condition", "alone", "removed", "unscored", "left", "footage left"), rows))


def savings_sentence(selection: Selection, savings: CaptionSavings) -> str | None:
    """What captioning the selection alone saves; None if it has all clips, or none."""
    if selection.empty or not savings.clips:
        return None
    share = savings.clips / selection.total_clips
    estimate = ""
    if savings.captioner is not None:
        estimate = f": about {spent(savings.tokens, savings.price)} of the captioner {savings.captioner}"
    return f"captioning this selection alone saves {share:.0%} of the captions of all clips{estimate}"


def print_difference(console: Console, difference: Difference) -> None:
    """Print the clips that a selection has more and less than another, by the rule that decides."""
    rows = [("in both", "", difference.both, "")]
    for change in difference.coming:
        where = f" in {difference.other}" if change.rule else ""
        rows.append(("only here", f"{change.reason}{where}", change.clips, duration(change.seconds)))
    for change in difference.going:
        where = " here" if change.rule else ""
        rows.append((f"only in {difference.other}", f"{change.reason}{where}", change.clips, duration(change.seconds)))
    console.print(table(f"compared with {difference.other}", ("", "reason", "clips", "footage"), rows))


def shortfall(selection: Selection) -> str | None:
    """A warning if no clip is left or a rule dropped clips that lack its score for most clips; None otherwise."""
    if selection.starved:
        return "; ".join(
            f"{step.rule} dropped {step.unscored_dropped:,} clips without a score"
            + (f" ({step.unscored_reason})" if step.unscored_reason else "")
            for step in selection.starved
        ) + (
            f"; {selection.clips:,} of {selection.total_clips:,} clips are left. Compute the score, remove "
            "the rule, or set `unscored: keep` in it"
        )
    if not selection.empty:
        return None
    if not selection.total_clips:
        return "no clip passed: the dataset has no clips"
    worst = max(selection.funnel, key=lambda step: step.removed + step.unscored_dropped)
    return (
        f"no clip passed: {worst.rule} removed the most ({worst.removed + worst.unscored_dropped:,} clips); loosen it"
    )


def condition(step: Mapping[str, Any]) -> str:
    """A rule as written and its resolved threshold, or why it was skipped."""
    if step["skipped"]:
        return f"skipped: {step['skipped']}"
    numbers = ", ".join(f"{k} {v:.4g}" for k, v in step["thresholds"].items() if v is not None)
    note = f"; {step['note']}" if step["note"] else ""
    return f"{step['asked']}" + (f"  ({numbers})" if numbers else "") + note
