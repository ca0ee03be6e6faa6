"""Terminal output of `clipmill log` and `clipmill remove`."""

import re
from collections.abc import Sequence

from rich.console import Console

from curation.dataset.commits import Commit
from curation.scores.columns import CAPTIONS, SCORES
from pipelines.grid import table
from pipelines.printable import printable
from pipelines.remove import RemoveResult

_SHOWN = 10


def print_log(console: Console, dataset: str, commits: Sequence[Commit]) -> None:
    """Print a table with a row per version."""
    rows = (
        (
            commit.version,
            commit.finished[:19].replace("T", " "),
            f"{commit.command} {commit.what}" + (" (interrupted)" if commit.interrupted else ""),
            commit.clipmill,
            commit.rows.get("sources", 0),
            commit.rows.get("clips", 0),
            ", ".join(f"{table_label(name)} {_difference(rows)}" for name, rows in commit.changes.items()),
            commit.reason,
        )
        for commit in commits
    )
    columns = ("version", "UTC", "command", "clipmill", "sources", "clips", "changed tables", "reason")
    console.print(table(f"versions of {printable(dataset)}", columns, rows))


def print_removal(console: Console, result: RemoveResult, *, dry_run: bool, listed: bool) -> None:
    """Print what was removed, or would be; `listed`: shards were left as they are."""
    rows = [
        ("sources", result.sources, ""),
        *(("  not in the dataset", None, uri) for uri in result.not_in_dataset[:_SHOWN]),
        *((f"rows of {table_label(name)}", rows, "") for name, rows in result.rows.items() if name != "sources"),
        *((f"selection {name}", clips, "clips") for name, clips in result.selections.items()),
        *((f"shard{'' if listed else ', rewritten'}", samples, shard) for shard, samples in result.shards.items()),
        *(("latents: delete or cache them again", None, latents) for latents in result.latents),
        *(("published: take out or publish again", None, folder) for folder in result.published),
        *(("page of the report, deleted", None, page) for page in result.pages),
    ]
    verb = "would be removed from" if dry_run else f"removed: version {result.version} of"
    console.print(table(f"{verb} {printable(result.dataset)}", ("", "count", ""), rows))


def table_label(table: str) -> str:
    """A table as rules and commands name it: `aesthetic@2` for scores/aesthetic/v2."""
    folder, _, name = table.partition("/")
    if folder not in (SCORES, CAPTIONS):
        return table
    name = re.sub(r"/v(\d+)$", r"@\1", name)
    return name if folder == SCORES else f"captions {name}"


def _difference(rows: int) -> str:
    return f"{rows:+,}" if rows else "replaced"
