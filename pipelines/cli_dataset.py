"""`clipmill log` and `clipmill remove`: the history of a dataset, and sources that leave it."""

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from pipelines.cli_shared import DATASETS, EXIT_CODES, AsJson, DatasetFolder, TakeOver, console, say

app = typer.Typer()


class _Shards(StrEnum):
    rewrite = "rewrite"
    list = "list"


@app.command(epilog=EXIT_CODES, rich_help_panel=DATASETS)
def log(dataset: DatasetFolder, as_json: AsJson = False) -> None:
    """List the versions of a dataset, newest first: what changed, when, and by which command."""
    from curation.dataset.commits import read_commits
    from curation.dataset.tables import Dataset
    from pipelines.render_log import print_log

    commits = read_commits(Dataset(dataset).open())[::-1]
    if as_json:
        print(json.dumps([asdict(commit) for commit in commits]))
    elif commits:
        print_log(console(), dataset, commits)
    else:
        say(f"{dataset} has no versions yet")


@app.command(epilog=EXIT_CODES, rich_help_panel=DATASETS)
def remove(
    dataset: DatasetFolder,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            help="List of addresses or source ids (.txt, .csv, .jsonl, .parquet, ...), or one of them; repeatable.",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="SQL condition on the sources table and its metadata, e.g. \"license = 'CC-BY-NC'\".",
            show_default=False,
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Reason, recorded with the removal.", show_default=False)] = "",
    shards: Annotated[
        _Shards, typer.Option(help="Rewrite the shards that hold their clips, or only list them.")
    ] = _Shards.rewrite,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed and exit.")] = False,
    as_json: AsJson = False,
    take_over: TakeOver = False,
) -> None:
    """Remove sources and everything made from them: clips, pictures, scores, captions, embeddings, samples of shards.

    `clipmill curate` does not scan them again, unless --restore is passed. If a removal is interrupted, no
    other command opens the dataset: rerun it, or run `clipmill remove DATASET` alone.
    """
    from pipelines.remove import remove as run
    from pipelines.render_log import print_removal

    result = run(
        dataset,
        sources=sources or (),
        where=where,
        reason=reason,
        shards=shards.value,
        dry_run=dry_run,
        take_over=take_over,
    )
    if as_json:
        print(json.dumps(asdict(result)))
    elif not result.sources and not result.not_in_dataset:
        say(f"nothing to remove: {dataset} has none of these sources anymore")
    else:
        print_removal(console(), result, dry_run=dry_run, listed=shards is _Shards.list)
