"""`clipmill caption`."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli_shared import (
    CAPTIONS_FAILED,
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

if TYPE_CHECKING:
    from pipelines.caption import CaptionResult

app = typer.Typer()


@app.command(epilog=EXIT_CODES, rich_help_panel=CLIPS)
def caption(
    dataset: DatasetFolder,
    captioner: Annotated[
        str,
        typer.Option(
            help="coca, video, merged, the name of a plug-in, or a class: module:Class, path/file.py:Class.",
            show_default=False,
        ),
    ],
    selection: Annotated[
        str | None, typer.Option(help="Caption the clips of this selection only.", show_default=False)
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="YAML file with settings under `captioners`, as for `clipmill curate`.", show_default=False),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry clips whose caption failed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the version and the number of clips without captioning them.")
    ] = False,
    take_over: TakeOver = False,
    address: Address = None,
    num_cpus: NumCpus = None,
) -> None:
    """Caption the clips of a dataset, or of a selection.

    Rerun the same command to resume, or to caption clips that were added since: only missing work is done. Other
    settings or weights make a new version of the captions, which counts from then on. Shards written afterwards carry
    the newest caption in .txt.
    """
    from pipelines.caption import caption as run
    from pipelines.config import CurateConfig

    result = run(
        dataset,
        captioner,
        selection=selection,
        config=CurateConfig.from_file(config) if config else None,
        retry_failed=retry_failed,
        dry_run=dry_run,
        take_over=take_over,
        address=address,
        num_cpus=num_cpus,
    )
    _say_result(result, selection, dry_run=dry_run)
    if result.failed_now:
        complain(
            f"{result.failed_now:,} captions failed, most often with: {result.reason}\nEach clip has its error in "
            f"{result.captioner}_error. Fix the cause, then rerun the same command with --retry-failed"
        )
        raise typer.Exit(CAPTIONS_FAILED if result.captioned_now or result.captioned_before else NOTHING_CAME_OUT)


def _say_result(result: "CaptionResult", selection: str | None, *, dry_run: bool) -> None:
    from pipelines.grid import spent

    done = f"{result.captioned_now:,} clips to caption" if dry_run else f"captioned {result.captioned_now:,}"
    clips = "" if dry_run else f" of {result.dataset_clips:,} clips, {result.failed_now:,} failed"
    say(f"{result.captioner}, version {result.version}: {done}{clips}, {result.captioned_before:,} captioned before")
    if result.changes:
        say(f"  new version: {'; '.join(result.changes)}")
    if result.tokens:
        say(f"  {spent(result.tokens, result.price)} for the captions of this version")
    left = result.dataset_clips - result.clips
    if selection is not None and left:
        per_clip = 1 / max(1, result.dataset_clips - result.uncovered)
        saved = result.tokens * left * per_clip
        price = None if result.price is None else result.price * left * per_clip
        estimate = f": about {spent(round(saved), price)} saved" if result.tokens else ""
        say(f"  {left:,} clips outside the selection {selection} were not captioned{estimate}")
    elif result.uncovered and not dry_run:
        say(f"  {result.uncovered:,} clips of the dataset have no caption of this version")
