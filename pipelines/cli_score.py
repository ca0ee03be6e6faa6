"""`clipmill score`."""

from typing import Annotated

import typer

from pipelines.cli_shared import (
    CLIPS,
    EXIT_CODES,
    NOTHING_CAME_OUT,
    Address,
    DatasetFolder,
    NumCpus,
    TakeOver,
    complain,
    say,
)

app = typer.Typer()


@app.command(epilog=EXIT_CODES, rich_help_panel=CLIPS)
def score(
    dataset: DatasetFolder,
    scorer: Annotated[
        str,
        typer.Option(help="Name of a scorer, or its class: module:Class, path/file.py:Class.", show_default=False),
    ],
    selection: Annotated[
        str | None, typer.Option(help="Score the clips of this selection only.", show_default=False)
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="YAML file with settings, as for `clipmill curate`.", show_default=False),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry clips whose scoring failed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the version and the number of clips without scoring them.")
    ] = False,
    take_over: TakeOver = False,
    address: Address = None,
    num_cpus: NumCpus = None,
) -> None:
    """Add a scorer's columns to the clips of a dataset.

    Rerun the same command to resume, or to score clips that were added since: only missing work is done. Other settings
    or weights make a new version of the score, which counts from then on; rules reach the older one as NAME@1.
    """
    from pipelines.config import CurateConfig
    from pipelines.score import score as run

    result = run(
        dataset,
        scorer,
        selection=selection,
        config=CurateConfig.from_file(config) if config else None,
        retry_failed=retry_failed,
        dry_run=dry_run,
        take_over=take_over,
        address=address,
        num_cpus=num_cpus,
    )
    done = f"{result.scored_now:,} clips to score" if dry_run else f"{result.scored_now:,} clips scored"
    failed = "" if dry_run else f", {result.failed_now:,} failed"
    say(f"{result.scorer}, version {result.version}: {done}{failed}, {result.scored_before:,} scored before")
    if result.changes:
        say(f"  new version: {'; '.join(result.changes)}")
    if result.uncovered:
        older = f", or name {result.scorer}@{result.version - 1} in rules" if result.version > 1 else ""
        say(
            f"  {result.uncovered:,} clips of the dataset are not scored by this version and count as unscored: score "
            f"them without --selection{older}"
        )
    if result.failed_now:
        say(f"  most frequent error: {result.reason}")
    if result.failed_now and not result.scored_now:
        complain(f"no clip could be scored; see {result.scorer}_error in the dataset")
        raise typer.Exit(NOTHING_CAME_OUT)
