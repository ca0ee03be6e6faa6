"""How results look on a terminal: small tables, and text from files made safe to print."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.inspect import Inspection


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A table whose numeric columns are right-aligned; None is shown as a dash."""
    rows = [list(row) for row in rows]
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        numeric = all(isinstance(row[i], int | float | None) for row in rows) and rows
        grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    return grid


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return printable(str(value))


def printable(text: str) -> str:
    """Text from a file name or a file, with control characters and broken encodings made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text).encode(
        "utf-8", "backslashreplace"
    ).decode()  # fmt: skip


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def print_inspection(console: Console, seen: Inspection) -> None:
    """One video for a person: what it is, where it changes, what clips it gives and how they score."""
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
    console.print(
        table(
            "clips",
            ("start s", "end s", "length s", "frames", "take", "lost s", "motion %/s", "text area"),
            (_clip_cells(clip) for clip in seen.clips),
        )
        if seen.clips
        else Text("  no clips\n")
    )


def _probe_line(source: Mapping[str, Any]) -> str:
    fps = f"{source['fps']:.3f} fps" if source["fps"] else "one frame"
    rate = f"{fps}, variable" if source["variable_fps"] else fps
    turned = f", turned by {source['rotation']}°" if source["rotation"] else ""
    return (
        f"  {source['codec']} {source['pixel_format']} in {source['container'].split(',')[0]}, "
        f"{source['width']}x{source['height']}{turned}, {rate}, {source['duration_s']:.2f} s, "
        f"{source['frames']} frames, {source['keyframes']} keyframes, scan {source['scan_cpu_s']:.2f} CPU-s"
    )


def _clip_cells(clip: Mapping[str, Any]) -> tuple[Any, ...]:
    lost_s = (clip["cut_end_s"] - clip["cut_start_s"]) - clip["duration_s"]
    return (
        clip["start_s"],
        clip["end_s"],
        clip["duration_s"],
        clip["frames"],
        clip["take"],
        lost_s,
        clip["motion"],
        f"{clip['text_area']:.3f}" if clip.get("text_area") is not None else None,
    )
